"""The problems: small enough that a training takes about a second on one core.

Data are drawn anew for every seed where the problem allows it. The validation part
chooses learning rates and static weights, the test part is what is reported. Scores
are errors: smaller is better.
"""

import chosen_on

# By the name that --problems takes: first those on which a default was chosen.
CHOSEN_ON = {
    "digits": chosen_on.digits,
    "adatask": chosen_on.adatask,
    "small_inputs": chosen_on.small_inputs,
    "adult": chosen_on.adult,
    "multimnist": chosen_on.multimnist,
    "poisson": chosen_on.poisson,
    "burgers": chosen_on.burgers,
}
PROBLEMS = CHOSEN_ON
