"""The configuration of a run: one frozen, typed value.

A YAML file (or a mapping) is merged over a preset (`presets/`), then command-line overrides are
merged over both, then everything is validated here. Unknown keys are errors. `kswap schema` prints
the JSON Schema of `SwapConfig`.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import Field, PrivateAttr, ValidationError, model_validator
from pydantic_core import to_jsonable_python

from kswap.errors import UserError, closest, printable
from kswap.presets import PRESETS
from kswap.settings import (
    ROLES,
    TASKS,
    AdapterConfig,
    DataConfig,
    Frozen,
    HeadConfig,
    ScenePaths,
    SourceConfig,
    SplitPaths,
    StagesConfig,
    TaskName,
    TrainingConfig,
    forgets,
    learns,
)
from kswap.yaml_text import merge, one_line, parse_overrides, read_yaml


class SwapConfig(Frozen):
    """Everything a run is made of."""

    model: str
    """Hub id or local folder of a classifier, semantic segmenter or detector (safetensors)."""
    task: Literal["auto", "classification", "segmentation", "detection"] = "auto"
    """What the model does; read off the model. It decides the values of the preset."""
    learn: SourceConfig | None = None
    """Classes to learn. Needed by an L or J stage."""
    forget: SourceConfig | None = None
    """Classes to forget. Needed by an F or J stage."""
    retain: SourceConfig | None = None
    """Classes to retain. Optional: preset retain-free uses none for training."""
    order: Annotated[str, Field(pattern="^[LFJ]+$")] = "LF"
    """Stages: a string of L (learn), F (forget) and J (joint)."""
    preset: Literal[
        "default",
        "paper",
        "retain-free",
        "deep",
        "ft",
        "neggrad+",
        "random-labels",
        "scrub",
        "salun",
        "bad-teacher",
        "boundary-shrink",
        "tilted",
        "subspace",
        "gs-lora",
        "gs-lora++",
        "lwf",
        "ewc",
        "task-arithmetic",
        "ssd",
    ] = "default"
    """Values for what is not given; see kswap.presets. The first four and `ssd` are for every task,
    the others for classification."""
    output: Path = Path("runs/swap")
    """Run folder."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of splits, adapters and batches."""
    data: DataConfig = Field(default_factory=DataConfig)
    """How images are read, kept and split."""
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    """LoRA."""
    head: HeadConfig = Field(default_factory=HeadConfig)
    """New rows of the head."""
    stages: StagesConfig
    """What each kind of stage does."""
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    """The loop."""
    _given: dict[str, Any] = PrivateAttr(default_factory=dict)
    """What was given, without the preset."""

    @model_validator(mode="after")
    def _roles_have_data(self) -> SwapConfig:
        if learns(self.order) and self.learn is None:
            raise ValueError(
                f"order {self.order!r} has a stage that learns, but there is no 'learn:' source; "
                "add one ({} where the data is in memory), or take L and J out of the order"
            )
        if forgets(self.order) and self.forget is None:
            raise ValueError(
                f"order {self.order!r} has a stage that forgets, but there is no 'forget:' source; "
                "add one ({} where the data is in memory), or take F and J out of the order"
            )
        return self

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> SwapConfig:
        """Read a YAML file; `overrides` are command-line words such as `--stages.learn.epochs 3`.

        Raises:
            UserError: the file, a key or a value is wrong.
        """
        values = read_yaml(path)
        values.pop("environment", None)  # what RUN/config.yaml says of versions and commits
        return cls.from_mapping(values, overrides)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], overrides: Sequence[str] = ()) -> SwapConfig:
        """Merge preset, `values` and `overrides` (in this order) and validate.

        Raises:
            UserError: a key or a value is wrong.
        """
        user = merge(values, parse_overrides(overrides))
        if isinstance(user.get("output"), Path):
            user["output"] = str(user["output"])
        preset = user.get("preset", "default")
        if not isinstance(preset, str) or preset not in PRESETS:
            raise UserError(f"preset: {preset!r} is not a preset; take one of {', '.join(PRESETS)}")
        by_task, task = PRESETS[preset], user.get("task")
        known = isinstance(task, str) and task in by_task
        if task in TASKS and not known:
            raise UserError(
                f"preset: {preset!r} has no values for {task}; take one of "
                f"{', '.join(name for name, tasks in PRESETS.items() if task in tasks)}"
            )
        values_of_preset = copy.deepcopy(by_task[str(task) if known else "classification"])
        # what a preset says of a source holds only where the user has that source
        for role in ROLES:
            if not isinstance(user.get(role), Mapping):
                values_of_preset.pop(role, None)
        try:
            config = cls.model_validate(merge(values_of_preset, user))
        except ValidationError as error:
            raise UserError(describe(error, values_of_preset)) from None
        config._given = user
        return config

    def __eq__(self, other: object) -> bool:
        """Whether every value is the same, wherever it came from."""
        return isinstance(other, SwapConfig) and self.to_mapping() == other.to_mapping()

    def model_copy(
        self, *, update: Mapping[str, Any] | None = None, deep: bool = False
    ) -> SwapConfig:
        """Return a copy with other values, which are validated and go before the preset's.

        A mapping or section replaces what was given of that key. Another preset brings its own
        values for what was not given.

        Raises:
            UserError: a key or a value is wrong.
        """
        if not update:
            return super().model_copy(deep=deep)
        given = self._given or self.to_mapping()
        return SwapConfig.from_mapping({**given, **to_jsonable_python(dict(update))})

    def for_task(self, task: TaskName) -> SwapConfig:
        """Return the config with the preset's values for the task of the model.

        Raises:
            UserError: the config names another task.
        """
        if self.task == task:
            return self
        if self.task != "auto":
            raise UserError(
                f"task: {self.task!r}, but the model {self.model!r} does {task}; leave task out, "
                "or name another model"
            )
        given = self._given or self.to_mapping()
        return SwapConfig.from_mapping({**given, "task": task})

    def to_mapping(self) -> dict[str, Any]:
        """Return plain values that `from_mapping` reads back to an equal config.

        Plain: str, int, float, list, dict.
        """
        plain: dict[str, Any] = json.loads(self.model_dump_json())
        return plain


def resolve(config: SwapConfig) -> SwapConfig:
    """Make local paths absolute, so that config.yaml can be used from anywhere.

    Raises:
        UserError: the output is no path.
    """

    def absolute(text: str, *, is_pattern: bool = False) -> str:
        try:
            path = Path(text).expanduser()
            if is_pattern:
                return str(path.absolute())
            return str(path.resolve()) if text and path.exists() else text
        except (OSError, ValueError, RuntimeError):  # too long, a null byte, no such user:
            return text  # said by whoever opens it

    def each(data: Any, *, streams: bool) -> Any:
        if isinstance(data, Mapping):
            return {key: each(below, streams=streams) for key, below in data.items()}
        if not data:  # a split that is not named
            return data
        return absolute(data, is_pattern=streams and bool(set("*?[{") & set(data)))

    values = config.to_mapping()
    values["model"] = absolute(config.model)
    try:
        values["output"] = str(config.output.expanduser().resolve())
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"output: {str(config.output)!r} is no path ({error}); name a folder"
        ) from None
    for role in ROLES:
        source = values.get(role)
        if source:
            source["data"] = each(source["data"], streams=source["streaming"])
    return SwapConfig.from_mapping(values)


_SECTIONS_OF_TAGS: dict[int | str, Any] = {"SplitPaths": SplitPaths, "ScenePaths": ScenePaths}
_UNION_TAGS = (*_SECTIONS_OF_TAGS, "str")
"""What pydantic puts into the place of an error where a value may be of several types."""

_RULES = {
    "order": "an order is one or more of L (learn), F (forget) and J (joint), such as LF",
    r"stages\.\w+\.depth": "a depth is all, auto or last-K, such as last-4",
    r"(learn|forget|retain)\.(classes|rename)\..*": "a class has a name: put numbers, yes, no, "
    "true and false in quotes, as in ['0', 'no']",
}
"""Pattern of a key -> its rule in words, where pydantic would show a regular expression."""


_KINDS_OF_VALUES = {
    "string_type": "this is one text",
    "path_type": "this is a path: put numbers, yes, no, true and false in quotes",
    "tuple_type": "this is a list, such as [a, b]",
    **dict.fromkeys(
        ("dict_type", "model_type", "model_attributes_type"),
        "this is a section, keys and their values, such as {KEY: VALUE}",
    ),
}
"""Problem -> what the key takes, where pydantic would name classes of Python."""


def describe(error: ValidationError, preset: Mapping[str, Any]) -> str:
    """Return one line for the first problem of an error: the key, the value, the rule, the fix.

    Args:
        error: of pydantic.
        preset: values that the user's were laid over.
    """
    problems = error.errors()
    in_mapping = {p["loc"][:-2] for p in problems if "SplitPaths" in p["loc"][-2:]}
    problems = [  # `data: {...}` is meant as SplitPaths: that it is no text either says nothing
        p for p in problems if p["loc"][-1:] != ("str",) or p["loc"][:-1] not in in_mapping
    ]
    problem = problems[0]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    names = (str(part) for part in problem["loc"] if part not in _UNION_TAGS)
    where = ".".join(one_line(printable(name)) for name in names)
    if problem["type"] == "extra_forbidden":
        known = _fields_at(problem["loc"][:-1])
        name = str(problem["loc"][-1])
        hint = f"closest: {closest(name, known)}" if known else "see `kswap schema`"
        return f"{where}: unknown key; {hint}{more}"
    if problem["type"] == "missing":
        group = problem["loc"][:-2]
        there = _names_of(preset, group) if group[-1:] in (("terms",), ("streams",)) else ()
        other = f", or name one that is there: {', '.join(there)}" if there else ""
        return f"{where}: is missing; add it (see `kswap schema`){other}{more}"
    message = problem["msg"].removeprefix("Value error, ")
    if not where:
        return f"{message}{more}"
    if problem["type"] == "value_error" and _fields_at(problem["loc"]):
        return f"{where}: {message}{more}"  # a section's own rules name the value in it
    if problem["type"] == "string_type" and not isinstance(problem["input"], list | dict | None):
        message = "this is a text: put numbers, dates, yes, no, true and false in quotes"
    else:
        message = _KINDS_OF_VALUES.get(problem["type"], message)
    message = next((rule for key, rule in _RULES.items() if re.fullmatch(key, where)), message)
    shown = one_line(repr(problem["input"]))
    return f"{where}: {shown} is not allowed: {message}; correct it (see `kswap schema`){more}"


def _names_of(preset: Mapping[str, Any], loc: tuple[int | str, ...]) -> list[str]:
    """Return the names that a preset has at `loc`: those of its terms or streams, say."""
    here: Any = preset
    for part in loc:
        here = here.get(part) if isinstance(here, Mapping) else None
    return list(here) if isinstance(here, Mapping) else []


def _fields_at(loc: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the section at `loc`; none where there is no section."""
    model: Any = SwapConfig
    for part in loc:
        if part in _SECTIONS_OF_TAGS:
            model = _SECTIONS_OF_TAGS[part]
        elif get_origin(model) is dict:  # terms and streams: a section for each name
            model = get_args(model)[1]
        else:
            field = getattr(model, "model_fields", {}).get(part)
            kinds = () if field is None else (field.annotation, *get_args(field.annotation))
            model = next(
                (k for k in kinds if hasattr(k, "model_fields") or get_origin(k) is dict), None
            )
    return list(getattr(model, "model_fields", ()))


_ENVIRONMENT = "What RUN/config.yaml says of versions and commits; not read."


def json_schema() -> dict[str, Any]:
    """JSON Schema of a YAML config as a user writes it: what a preset supplies is not required."""
    schema = SwapConfig.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["required"] = ["model"]
    schema["properties"]["environment"] = {"type": "object", "description": _ENVIRONMENT}
    for name in ("StageConfig", "StagesConfig", "StreamConfig", "TermConfig"):
        schema["$defs"][name].pop("required", None)
    schema["properties"]["stages"]["default"] = PRESETS["default"]["classification"]["stages"]
    return schema
