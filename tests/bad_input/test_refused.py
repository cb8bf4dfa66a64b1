"""Bad input: a clear error while tracing. What passes is tested in another file."""

import re
from functools import cache
from pathlib import Path

import optax
import pytest

import multiterm_optax as mt
from tests import _methods
from tests._asserts import (
    assert_message,
)
from tests.bad_input import _refused_factories, _refused_losses, _refused_steps
from tests.bad_input._step import (
    K,
    grads,
    step,
)

# The library's own messages, as a user without a type checker sees them.
pytestmark = pytest.mark.usefixtures("own_errors")


# Each message names who speaks, the argument, what was expected and what was found.
REFUSED = {
    **_refused_factories.REFUSED,
    **_refused_steps.REFUSED,
    **_refused_losses.REFUSED,
}


@cache
def message(case):
    call, error, _ = REFUSED[case]
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("case", REFUSED)
def test_is_refused(case):
    text = message(case)
    assert_message(text, *REFUSED[case][2])
    speaker = text.split(":")[0]
    assert callable(getattr(mt, speaker.split(".")[0])) or speaker.startswith("metrics")
    assert text.endswith((".", "?")), text
    assert len(text) < 500, "nobody reads that much"


def test_there_are_many():
    assert len(REFUSED) >= 60


LOSS_READERS = [
    name for name, one in _methods.methods().items() if one.make(K).reads_losses
]


def assert_asks_for_losses(tx):
    with pytest.raises(ValueError, match="reads the losses") as caught:
        step(tx)
    assert_message(
        caught.value, "tx.update(grads, state, params, losses=losses)", "found none"
    )


@pytest.mark.parametrize("method", LOSS_READERS)
def test_missing_losses(method):
    assert_asks_for_losses(mt.reweight(_methods.methods()[method].make(K), K))


# The stages around it pass on what they are given, whatever the weighting.
@pytest.mark.parametrize("method", _methods.sampled(LOSS_READERS))
def test_missing_losses_behind_other_stages(method):
    weighting = _methods.methods()[method].make(K)
    around = mt.weighted(weighting, optax.sgd(0.1), K)
    assert_asks_for_losses(around)
    assert_asks_for_losses(mt.multi_steps(around, K, 1))


def test_weightings_that_need_no_losses_are_known():
    for name in _methods.factories().keys() - set(LOSS_READERS):
        step(mt.reweight(_methods.build(name, 3), 3), grads(3))


def test_the_page_quotes_real_messages():
    page = Path(__file__).resolve().parents[2] / "docs" / "errors.md"
    table = page.read_text().split("## Messages")[1].split("\n## ")[0]
    quoted = re.findall(r"^\| `([^`]+)` \|", table, flags=re.MULTILINE)
    assert len(quoted) > 15
    messages = [message(case) for case in REFUSED]
    messages.append("this weighting reads the losses")  # test_missing_losses
    messages.append("init takes the number of terms")  # test_misplaced
    for quote in quoted:
        parts = [part.strip() for part in quote.split("...")]
        assert any(all(part in text for part in parts) for text in messages), quote
