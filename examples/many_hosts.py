"""One training loop for one device, for many, and for many hosts.

A small network whose one output has two targets is trained by Adam on gradients that
MGDA weighs. The rows of the batch are spread over all devices of all processes;
parameters and optimizer state are copied to each device or, with ``--fsdp``, spread
over them as well.

  python examples/many_hosts.py                  one process, all its devices
  python examples/many_hosts.py --processes 2    two processes on this machine, on CPU,
                                                 compared with one process, one device

On a cluster run the same command on each host, with the first host's address:

  python examples/many_hosts.py --processes 2 --coordinator HOST:PORT --process 0
  python examples/many_hosts.py --processes 2 --coordinator HOST:PORT --process 1
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import multiterm_optax as mt

ROWS, INPUTS, HIDDEN = 64, 8, 32
DEVICES = 2  # virtual ones for each process that is started here
TOLERANCE = 1e-5  # float32 sums, taken in another order


def losses_fn(params, batch):
    x, y, z = batch
    found = jnp.tanh(x @ params["hidden"]) @ params["out"]
    return {"y": jnp.mean((found - y) ** 2), "z": jnp.mean((found - z) ** 2)}


def start():
    """The same parameters in every process, as NumPy arrays."""
    rng = np.random.default_rng(0)
    shapes = {"hidden": (INPUTS, HIDDEN), "out": (HIDDEN,)}
    return {
        name: rng.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def load_rows(step, first, last):
    """Rows of one step's batch; a process reads its own and no others."""
    x = np.random.default_rng((1, step)).normal(size=(ROWS, INPUTS)).astype(np.float32)
    rows = x[first:last]
    return rows, rows[:, 0], rows[:, 0] + rows[:, 1]


tx = mt.weighted(mt.mgda(), optax.adam(1e-2), num_terms=2)


def train_step(params, state, batch):
    losses, grads = mt.value_and_term_grads(losses_fn)(params, batch)
    updates, state = tx.update(grads, state, params, losses=losses)
    return optax.apply_updates(params, updates), state, losses


def train(mesh, steps, fsdp=False):
    """Trains on the devices of ``mesh``; returns what came out, as NumPy arrays."""
    over_devices, copied = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    share = ROWS // jax.process_count()
    first = share * jax.process_index()

    with jax.set_mesh(mesh):
        params = jax.device_put(start(), over_devices if fsdp else copied)
        state = tx.init(params)  # lies as the parameters do
        step = jax.jit(train_step, donate_argnums=(0, 1))
        losses = {}
        for count in range(steps):
            own = load_rows(count, first, first + share)
            batch = jax.tree.map(
                lambda rows: jax.make_array_from_process_local_data(over_devices, rows),
                own,
            )
            params, state, losses = step(params, state, batch)
        # A process can read only what lies on its own devices.
        (weights,) = mt.metrics.read(state, "weights").values()
        found = {"params": params, "weights": weights, "losses": losses}
        found = jax.jit(lambda tree: tree, out_shardings=copied)(found)
    return jax.tree.map(np.asarray, found)


def mesh_of(devices):
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def flat(found):
    paths = jax.tree_util.tree_leaves_with_path(found)
    return {jax.tree_util.keystr(path): leaf for path, leaf in paths}


def report(found):
    weights = ", ".join(f"{weight:.6f}" for weight in found["weights"])
    losses = ", ".join(f"{name} {loss:.6f}" for name, loss in found["losses"].items())
    print(f"losses {losses}; weights [{weights}]", flush=True)


def work(args):
    """One process of many, or the only one."""
    if args.coordinator:
        jax.distributed.initialize(
            args.coordinator,
            num_processes=args.processes,
            process_id=args.process,
            initialization_timeout=args.timeout,
        )
    devices = jax.devices()
    if args.process == 0:
        print(f"processes: {jax.process_count()}, devices: {len(devices)}", flush=True)
    found = train(mesh_of(devices), args.steps, args.fsdp)
    if args.process == 0:
        report(found)
        if args.save:
            np.savez(args.save, **flat(found))
    if args.coordinator:
        jax.distributed.shutdown()


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def command(args, process, coordinator, save):
    line = [sys.executable, __file__, "--processes", args.processes]
    line += ["--process", process, "--coordinator", coordinator, "--save", save]
    line += ["--steps", args.steps, "--timeout", args.timeout]
    line += ["--fsdp"] if args.fsdp else []
    return [str(word) for word in line]


def wait(workers: list[subprocess.Popen[Any]], seconds: float):
    """Waits for all; stops all as soon as one failed or time is up."""
    deadline = time.monotonic() + seconds
    try:
        while any(worker.poll() is None for worker in workers):
            if any(worker.returncode for worker in workers):
                break
            if time.monotonic() > deadline:
                raise SystemExit(f"not done after {seconds} s, stopped")
            time.sleep(0.05)
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()
    if any(worker.returncode for worker in workers):
        raise SystemExit("a process failed, the others were stopped")


def launch(args):
    """Starts the processes on this machine and compares them with this one alone."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(DEVICES),
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
    }
    coordinator = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory() as folder:
        save = Path(folder) / "found.npz"
        workers = [
            subprocess.Popen(command(args, i, coordinator, save), env=environment)
            for i in range(args.processes)
        ]
        wait(workers, args.timeout)
        with np.load(save) as archive:
            theirs = dict(archive)

    print("processes: 1, devices: 1")
    alone = train(mesh_of(jax.local_devices(backend="cpu")[:1]), args.steps)
    report(alone)
    worst = max(
        float(np.max(np.abs(theirs[name] - leaf)))
        for name, leaf in flat({**alone, "losses": []}).items()
    )
    print(f"largest difference of parameters and weights: {worst:.1e}")
    if not worst <= TOLERANCE:
        raise SystemExit(f"they differ by more than {TOLERANCE:.0e}")


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--fsdp", action="store_true")
    parser.add_argument("--timeout", type=int, default=60, help="seconds until stopped")
    parser.add_argument("--coordinator", help="HOST:PORT of process 0")
    parser.add_argument("--process", type=int, default=0, help="number of this process")
    parser.add_argument("--save", help="write what came out to this .npz file")
    args = parser.parse_args(argv)
    if args.processes < 1 or ROWS % (args.processes * DEVICES):
        parser.error(f"--processes: {ROWS} rows must divide, found {args.processes}")
    if args.processes > 1 and not args.coordinator:
        launch(args)
    else:
        work(args)


if __name__ == "__main__":
    main()
