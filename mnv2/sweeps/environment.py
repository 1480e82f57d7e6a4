"""What a result depends on besides its config: versions, commit, devices."""

import importlib.metadata
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnv2.runtime.machine import describe_devices, threads

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")
NOT_RECORDED = "not recorded"


def environment() -> dict[str, Any]:
    """Returns the environment of this process."""
    import jax  # which reports do not need

    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": COMMIT,
        "devices": [device.device_kind for device in jax.devices()],
        "threads": threads() if jax.default_backend() == "cpu" else None,
        "machine": f"{platform.system()} {platform.machine()}",
    }


def is_environment(value: Any) -> bool:
    """Tells whether a value has the form of what `environment` returns."""
    if not isinstance(value, dict) or not isinstance(value.get("packages", {}), dict):
        return False
    devices, earlier = value.get("devices", []), value.get("earlier", [])
    strings = isinstance(devices, list) and all(isinstance(device, str) for device in devices)
    return strings and isinstance(earlier, list) and all(map(is_environment, earlier))


def provenance(
    results: Mapping[str, Mapping[int, Any]], environments: Mapping[str, dict[str, Any]]
) -> list[str]:
    """Says in what environment the runs with results were executed, in one line per environment.

    If there are several, each line names its runs: an arm for all its seeds, or arm/seed.
    """
    finished = [(arm, seed) for arm, seeds in results.items() for seed in seeds]
    known = [env for name, env in environments.items() for env in (env, *env.get("earlier", []))]
    versions = [
        name
        for name in PACKAGES
        if name == "jax" or len({_packages(env).get(name) for env in known}) > 1
    ]
    groups: dict[str, list[tuple[str, int]]] = {}
    for arm, seed in finished:
        text = _describe(environments.get(f"{arm}/{seed}"), versions)
        groups.setdefault(text, []).append((arm, seed))
    if len(groups) == 1:
        return [f"{text}." for text in groups]
    lines = []
    for text, members in groups.items():
        names = []
        for arm in dict.fromkeys(arm for arm, _ in members):
            seeds = [seed for its, seed in members if its == arm]
            every = len(seeds) == len(results[arm])
            names += [arm] if every else [f"{arm}/{seed}" for seed in seeds]
        lines.append(f"{', '.join(names)}: {text}.")
    return lines


def _describe(env: dict[str, Any] | None, versions: list[str]) -> str:
    """Describes an environment: cpu with 2 threads (Linux x86_64), JAX 0.12.0, commit 1a2b3c."""
    if not env:
        return NOT_RECORDED
    kinds = describe_devices(env.get("devices") or ["unknown device"])
    if isinstance(count := env.get("threads"), int):
        kinds += f" with {count} thread{'s' * (count > 1)}"
    if isinstance(together := env.get("together"), int):
        kinds += f", {together} runs in one program"
    packages = _packages(env)
    names = {"jax": "JAX"}
    parts = [f"{kinds} ({env.get('machine', 'unknown machine')})"]
    parts += [f"{names.get(name, name)} {packages.get(name, 'unknown')}" for name in versions]
    parts.append(f"commit {env.get('commit') or 'unknown'}")
    text = ", ".join(parts)
    before = [_describe(one, versions) for one in env.get("earlier", [])]
    return f"{text}, resumed after a part on {'; '.join(before)}" if before else text


def _packages(env: dict[str, Any]) -> dict[str, Any]:
    return env.get("packages", {})


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # installed in another way
        return None


def commit() -> str | None:
    """Returns the git commit of this code, with '+' if it was changed since; None without git.

    None too if the code is installed inside the repository of another project.
    """
    if not shutil.which("git"):
        return None
    git = ["git", "-C", str(Path(__file__).parents[1])]
    tracked = [*git, "ls-files", "--error-unmatch", "__init__.py"]
    if subprocess.run(tracked, capture_output=True, check=False).returncode:
        return None
    command = [*git, "describe", "--always", "--abbrev=12", "--dirty=+"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


COMMIT = commit()  # of the code that this process loads now: a later one is not what runs
