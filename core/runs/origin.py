"""What a run began with, in ``run.json``, and whether a run that goes on finds the same.

id      drawn once: all that belongs to the run bears it
plans   the marks of the plans that its checkpoints were made under: of several, if changes were
        accepted
config  every option, as ``config.toml`` has it
found   what stood behind the names: contents of files, versions of packages, data, weights
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from splitlab.core.catalogue.binding import bind
from splitlab.core.catalogue.tables import Loadable, entries
from splitlab.core.contract.errors import ConfigError
from splitlab.core.contract.settings import Bound
from splitlab.core.models.build import bind_model
from splitlab.core.runs.checkpoint import plan_mark
from splitlab.core.runs.config import LABELS, Config, differences
from splitlab.core.runs.disk import write_whole
from splitlab.core.runs.plan import Plan

__all__ = ["Origin"]

_FILE = "run.json"
_FORMAT = 1


@dataclass(frozen=True)
class Origin:
    """What a run began with.

    Attributes:
        id: of the run, 16 hexadecimal digits.
        plans: `plan_mark` of every plan that its checkpoints may belong to, the present one last.
        config: of the run, without ``output``.
        found: by the name that the user knows it by.
    """

    id: str
    plans: tuple[str, ...]
    config: Config
    found: Mapping[str, str]

    @classmethod
    def of(cls, plan: Plan, id: str | None = None) -> Origin:
        """Return that of a run that begins now; its id is drawn unless it is given."""
        config = dataclasses.replace(plan.config, output=None)
        mark = plan_mark(plan.agreement)
        return cls(id or secrets.token_hex(8), (mark,), config, _found(plan))

    @classmethod
    def read(cls, folder: Path) -> Origin:
        """Return that of the run in a folder.

        Raises:
            ConfigError: there is none, or it cannot be read.
        """
        path = folder / _FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["version"] != _FORMAT:
                raise ValueError(f"its version is {values['version']!r}, not {_FORMAT}")
            config = Config.from_mapping(values["config"])
            lists = values["plans"], values["found"].values()
            texts = [values["id"], *lists[0], *lists[1]]
            if not lists[0] or not all(isinstance(text, str) for text in texts):
                raise TypeError("id, plans and found hold texts")
            return cls(values["id"], tuple(values["plans"]), config, values["found"])
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be read ({error.strerror}), so nobody knows what the run began "
                "with; run it again"
            ) from None
        except (ValueError, LookupError, TypeError, AttributeError, ConfigError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(f"{path} is damaged ({reason}); run it again") from None

    def write(self, folder: Path) -> None:
        """Write it, whole."""
        values = {"version": _FORMAT, **vars(self), "config": dataclasses.asdict(self.config)}
        write_whole(folder / _FILE, json.dumps(values, indent=2) + "\n")

    def followed_by(self, plan: Plan, written: Config) -> tuple[Origin, list[str]]:
        """Return what the run goes on with, and what has changed since it began.

        Args:
            plan: made anew.
            written: what ``config.toml`` holds now.
        """
        now = Origin.of(plan, self.id)
        edits = differences(written, self.config, LABELS)
        changed = [f"config.toml was edited: {one}" for one in edits]
        for name in {**self.found, **now.found}:
            old, new = self.found.get(name, "nothing"), now.found.get(name, "nothing")
            if old != new:
                changed.append(f"{name} was {old} and is now {new}")
        before = tuple(mark for mark in self.plans if mark not in now.plans)
        return dataclasses.replace(now, plans=before + now.plans), changed


def _found(plan: Plan) -> dict[str, str]:
    config, data = plan.config, plan.data
    model = bind_model(config.model)
    return {
        "stack": _named("plugins", plan.stack),
        "probes": _named("probes", plan.probes),
        "links": _named("links", plan.links),
        "transport": _named("transports", [bind("transports", config.transport)]),
        "model": plan.agreement["model"] + _brought("models", model),
        "weights": plan.agreement["weights"],
        "data": f"{data.train} training and {data.test} test images, {data.fingerprint}",
        "version": _version("splitlab").strip(),
    }


def _named(kind: Loadable, members: Iterable[Bound]) -> str:
    return " + ".join(each.agreement() + _brought(kind, each) for each in members) or "none"


def _brought(kind: Loadable, bound: Bound) -> str:
    """Return what is behind a name that does not ship: package, version, content of its module.

    A file's content is in its identity.
    """
    entry = entries(kind).get(bound.identity.partition("=")[0])
    if entry is None or entry.source == "splitlab" or ".py:" in entry.target:
        return ""
    try:
        content = Path(inspect.getfile(bound.factory)).read_bytes()
    except (TypeError, OSError):  # not written in Python
        content = b""
    digest = hashlib.sha256(content).hexdigest()[:12]
    return f" ({entry.target}@{digest}{_version(entry.source)})"


def _version(package: str) -> str:
    """Return name and version of a package; nothing for a registry's path."""
    try:
        return f" {package} {version(package)}"
    except PackageNotFoundError:
        return ""
