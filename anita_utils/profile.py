"""Profiles: all that differs between a laptop, a free Colab GPU and a large one.

>>> profile = load_profile("cpu")
>>> profile.stages["sft"].lora.r
16
>>> profile.check(detect_machine())     # raises AnitaError for a pair that cannot work, such as fp16 on a CPU
"""

from __future__ import annotations

import difflib
import reprlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from anita_utils import AnitaError, shown

if TYPE_CHECKING:
    from anita_utils.machine import Machine


PROFILES = Path(__file__).parent / "profiles"
Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROJECTIONS = list(get_args(Projection))
Optimizer = Literal[
    "sgd", "adamw_torch", "adamw_torch_fused", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit",
    "lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit",
]  # fmt: skip
# The orders that the sources tell. In a profile `order: journal` stands for its list.
ORDERS = {
    "summary": ["sft", "italian", "dpo"],  # the summary that this course started from
    "paper": ["sft", "dpo"],  # the paper's abstract, where SFT is on English and Italian
    "journal": ["sft", "dpo", "italian"],  # the journal's abstract, and an author's answer (HF#1): SFT on English
}
RENAMED = {"piccola-italia": "piccola", "leaderboards": "paper"}  # suites, in runs that were made before
# Keys that had names of their own before they took those of TRL, PEFT and bitsandbytes.
LIBRARY_NAMES = {
    "batch_size": "per_device_train_batch_size",
    "gradient_accumulation": "gradient_accumulation_steps",
    "epochs": "num_train_epochs",
    "warmup": "warmup_steps",
    "schedule": "lr_scheduler_type",
    "optimizer": "optim",
    "alpha": "lora_alpha",
    "rslora": "use_rslora",
    "dropout": "lora_dropout",
    "targets": "target_modules",
    "bits": "load_in_4bit",
    "type": "bnb_4bit_quant_type",
    "double": "bnb_4bit_use_double_quant",
}
REHEARSAL = "rehearsal-"  # how the profile begins that `anita_utils.course.rehearsal` makes of another


class Section(BaseModel):
    """A part of a profile: unknown keys are mistakes, never ignored."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value, info: ValidationInfo):
        """Refuses true and false where 1 and 0 would silently be taken for them."""
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError("neither true nor false (nor yes, no, on, off) should stand here")
        return value


class Model(Section):
    base: str = Field(description="The base model: a shipped name, a folder, or a name on the Hub.")
    revision: str | None = Field(None, description="The commit of the Hub repository; null means unpinned.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(description="The type unquantised weights are held in.")
    system_in_user: bool = Field(
        False,
        description="For templates without a system role: system text goes before the first user turn, a blank line "
        "between.",
    )


class Quantisation(Section):
    """Under the names of transformers' BitsAndBytesConfig."""

    load_in_4bit: bool = Field(description="Whether bitsandbytes holds the weights in 4 bits.")
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field(
        "nf4", description="The 16 levels: normal-float (QLoRA's) or plain float."
    )
    bnb_4bit_use_double_quant: bool = Field(
        True, description="Whether the scales are quantised too: 4.127 bits, not 4.5."
    )


class Lora(Section):
    """Under the names of PEFT's LoraConfig."""

    r: int = Field(gt=0, description="The rank of the update.")
    lora_alpha: float = Field(gt=0, description="The update is scaled by lora_alpha / r (/ sqrt(r) with use_rslora).")
    use_rslora: bool = Field(False, description="Rank-stabilised scaling: lora_alpha / sqrt(r).")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    target_modules: list[Projection] = Field(
        PROJECTIONS, min_length=1, description="The linear layers that get an adapter."
    )


class HubData(Section):
    """How a data set on the Hub is read: streamed, shuffled, and cut to a sample."""

    revision: str | None = Field(description="The commit of the repository; null means unpinned.")
    config: str | None = Field(None, description="The configuration; null takes the default one.")
    split: str = Field(description="The split that is read.")
    licence: str = Field(description="Its licence; one with NC in it is said before anything is downloaded.")
    files: str | None = Field(
        None, description="JSON files, by path or hf:// address (* allowed), read in place of its own loader."
    )
    sample: int | None = Field(gt=0, description="How many rows to take; null takes all.")
    seed: int = Field(42, ge=0, description="The seed of the shuffle that the sample is drawn by.")
    without: list[str] = Field([], description="Rows whose `source` holds one of these words are left out.")


class Stage(Section):
    """From learning_rate on under the names of TRL's SFTConfig and DPOConfig; row_length alone is the course's own."""

    data: Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)] = Field(
        min_length=1, description="The corpora: each a shipped name, a .jsonl file, or a name under `datasets`."
    )
    examples: int | None = Field(None, gt=0, description="How many examples to take; null takes all.")
    lora: Lora = Field(description="The adapter of this stage.")
    learning_rate: float = Field(gt=0, description="The peak learning rate.")
    per_device_train_batch_size: int = Field(gt=0, description="Rows per device and step.")
    gradient_accumulation_steps: int = Field(
        1, gt=0, description="Steps whose gradients are added up before an update."
    )
    num_train_epochs: float = Field(1.0, gt=0, description="Passes over the data.")
    warmup_steps: float = Field(
        0.0, ge=0, description="Warm-up: a number of updates from 1 on, a share of them below 1."
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay.")
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="The learning rate after warm-up."
    )
    optim: Optimizer = Field("adamw_torch", description="The optimiser, by transformers' name.")
    max_length: int = Field(gt=0, description="Longer examples are cut at this many tokens.")
    row_length: int | None = Field(None, gt=0, description="Pack examples into rows of this length; null pads.")
    gradient_checkpointing: bool = Field(False, description="Compute activations twice to hold fewer of them.")
    beta: float | None = Field(None, gt=0, description="DPO only: how tightly the model is held to its reference.")


class Evaluation(Section):
    suite: Annotated[
        Literal["quick", "piccola", "paper", "italian"], BeforeValidator(lambda name: RENAMED.get(name, name))
    ] = Field(
        description="quick, piccola: the course's own, a few items or all. paper: the authors' English six and Italian "
        "three. italian: these three and more."
    )
    limit: int | None = Field(None, gt=0, description="Items per benchmark; null takes all.")
    load_in_4bit: bool = Field(
        False, description="Measure and talk to models in 4 bits, as in training; false: in model.dtype."
    )
    batch_size: int = Field(gt=0, description="Prompts per forward pass.")
    max_new_tokens: int = Field(gt=0, description="Where an answer is cut off.")


class Profile(Section):
    """One machine's way through the course. Load it with `load_profile`."""

    name: str = Field(description="The profile's name, as in `--profile`.")
    model: Model = Field(description="The model that all begins with.")
    precision: Literal["fp32", "bf16", "fp16"] = Field(description="The training arithmetic (autocast).")
    quantisation: Quantisation = Field(description="How the frozen weights are stored while training.")
    order: list[str] = Field(
        ORDERS["summary"], min_length=1, description="The stages, in the order they run; or summary, paper or journal."
    )
    datasets: dict[Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")], HubData] = Field(
        {}, description="The data sets on the Hub that stages may name."
    )
    stages: dict[Annotated[str, Field(pattern=r"^[\w-]+$")], Stage] = Field(description="The settings of each stage.")
    evaluation: Evaluation = Field(description="How the stages are measured.")
    seed: int = Field(42, ge=0, lt=2**32, description="The seed of everything that is drawn at random.")

    _source: str = PrivateAttr("profile")  # the file, for messages
    _file: Path | None = PrivateAttr(None)

    @property
    def file(self) -> Path | None:
        """The file it was read from, if any; the comments in it name the source of each value."""
        return self._file

    @model_validator(mode="before")
    @classmethod
    def _order_by_name(cls, values):
        """Puts the list in place of an order's name. The paper's order means SFT on two languages, so two corpora."""
        name = values.get("order") if isinstance(values, dict) else None
        if not isinstance(name, str):
            return values
        if name not in ORDERS:
            raise ValueError(f"order: {name!r} is not known: choose {', '.join(ORDERS)}, or list the stages")
        try:
            data = values["stages"]["sft"]["data"]
        except (KeyError, TypeError):
            data = None  # the checks of the fields will say what is missing
        if name == "paper" and (isinstance(data, str) or (isinstance(data, list) and len(data) == 1)):
            raise ValueError("order: paper has SFT on English and Italian: list a corpus of each in stages.sft.data")
        return values | {"order": ORDERS[name]}

    @model_validator(mode="after")
    def _stages_fit(self) -> Profile:
        missing = [stage for stage in self.order if stage not in self.stages]
        if missing:
            raise ValueError(f"order: '{missing[0]}' has no settings; add stages.{missing[0]} or drop it here")
        if len(set(self.order)) < len(self.order):
            raise ValueError("order: a stage stands in it twice; keep one")
        for name, stage in self.stages.items():
            if (stage.beta is not None) != (name == "dpo"):
                remedy = "missing: set it, for instance to 0.1" if name == "dpo" else "only dpo has one: remove it"
                raise ValueError(f"stages.{name}.beta: {remedy}")
            if stage.row_length is not None and name == "dpo":
                raise ValueError("stages.dpo.row_length: TRL's DPO takes no packed rows: set it to null")
            if stage.row_length is not None and stage.row_length < stage.max_length:
                raise ValueError(
                    f"stages.{name}.max_length: {stage.max_length} tokens do not go into rows of {stage.row_length}: "
                    f"lower it, or raise stages.{name}.row_length"
                )
            for corpus in stage.data:
                if "/" in corpus and not corpus.endswith(".jsonl") and corpus not in self.datasets:
                    raise ValueError(
                        f"stages.{name}.data: nothing is known of '{corpus}': describe it under datasets.{corpus}"
                    )
        return self

    def check(self, machine: Machine) -> None:
        """Raises AnitaError when `machine` cannot do the arithmetic that the profile asks for."""
        asked = {"precision": self.precision, "model.dtype": self.model.dtype}
        for key, value in asked.items():
            half = {"fp16": "fp16", "float16": "fp16", "bf16": "bf16", "bfloat16": "bf16"}.get(value)
            remedy = {"precision": "fp32", "model.dtype": "float32"}[key]
            if half == "fp16" and machine.gpu is None:
                raise AnitaError(
                    f"{self._source}: {key}: {value} on a CPU is a hundred times slower than float32: "
                    f"set it to {remedy}, or use --profile cpu"
                )
            if half == "bf16" and machine.gpu is None and not machine.bf16:
                raise AnitaError(
                    f"{self._source}: {key}: {value} on a CPU without bf16 instructions is ten times slower than "
                    f"float32: set it to {remedy}"
                )
            if half == "bf16" and machine.gpu is not None and not machine.bf16:
                capability = ".".join(map(str, machine.gpu_capability))
                raise AnitaError(
                    f"{self._source}: {key}: {machine.gpu} (capability {capability}) has no {value}: "
                    f"set it to {'fp16' if key == 'precision' else 'float16'} or {remedy}"
                )


def profile_file(name_or_path: str | Path) -> Path:
    """The file of the profile of that name, or the path itself. AnitaError where there is none."""
    file = Path(name_or_path) if Path(name_or_path).suffix in {".yaml", ".yml"} else PROFILES / f"{name_or_path}.yaml"
    if not file.is_file():
        known = sorted(file.stem for file in PROFILES.glob("*.yaml"))
        raise AnitaError(f"no profile '{name_or_path}': choose {', '.join(known)}, or the path of a .yaml file")
    return file


def load_profile(name_or_path: str | Path) -> Profile:
    """The profile of that name in `anita_utils/profiles/`, or in the YAML file at that path.

    Raises AnitaError, one line naming file, key and remedy, for an unknown profile, unreadable YAML, an unknown key
    or a wrong value.
    """
    file = profile_file(name_or_path)
    values = read_yaml(file, PROFILES / "cpu.yaml")
    profile = parse_profile(values, shown(file))
    profile._file = file.absolute()
    return profile


class KeysOnce(yaml.SafeLoader):
    """YAML whose keys stand once in their section; the library would take the last value without a word."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(file: Path, example: Path) -> dict:
    """The keys of a YAML file. AnitaError when there are none to be read; `example` is a file to start from."""
    try:
        values = yaml.load(file.read_text("utf-8-sig"), KeysOnce)
    except OSError as error:
        raise AnitaError(f"{shown(file)} cannot be read ({error.strerror}): give a file that you may read") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date that there is not
        raise AnitaError(f"{shown(file)} is not YAML ({' '.join(str(error).split())}): correct that line") from error
    if not isinstance(values, dict):
        raise AnitaError(f"{shown(file)} holds no keys: start from {shown(example)}")
    return values


def parse_profile(values: dict, source: str) -> Profile:
    """The profile made of `values`, which were read from `source` (named in the message of an AnitaError)."""
    try:
        profile = Profile.model_validate(values)
    except ValidationError as error:
        raise AnitaError(f"{source}: {_explain(error)}") from error
    profile._source = source
    return profile


def _explain(error: ValidationError) -> str:
    """The first complaint in one line: key, what is wrong, remedy.

    Unknown keys come before missing ones, for they may be these by another name.
    """
    first, *others = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    key = ".".join(map(str, first["loc"])).removesuffix(".[key]")
    if first["type"] == "extra_forbidden":
        meant, allowed = _meant(first["loc"]), _keys_beside(first["loc"])
        remedy = f"did you mean '{meant}'?" if meant else f"remove it; known here: {', '.join(allowed)}"
        complaint = f"{key}: unknown key: {remedy}"
    elif first["type"] == "missing":
        complaint = f"{key}: missing: add it"
    elif first["type"] == "value_error" and not first["loc"]:  # of the checks above, which name the key themselves
        complaint = str(first["ctx"]["error"])
    elif first["type"] in {"dict_type", "model_type"}:
        complaint = f"{key}: {reprlib.repr(first['input'])} will not do: keys of its own should stand under it"
    else:
        wrong = first["msg"].removeprefix("Value error, ")
        complaint = f"{key}: {reprlib.repr(first['input'])} will not do: {wrong[0].lower()}{wrong[1:]}"
    return " ".join(complaint.split()) + (f" (and {len(others)} more)" if others else "")


def _meant(location: tuple) -> str | None:
    """The key that is probably meant by an unknown one: its name today, or one spelt alike."""
    key, allowed = str(location[-1]), _keys_beside(location)
    if LIBRARY_NAMES.get(key) in allowed:
        return LIBRARY_NAMES[key]
    return next(iter(difflib.get_close_matches(key, allowed, n=1)), None)


def _keys_beside(location: tuple) -> list[str]:
    """The keys that are allowed where an unknown one was found."""
    section: type[BaseModel] = Profile
    path = iter(location[:-1])
    for key in path:
        section = section.model_fields[key].annotation
        if get_origin(section) is dict:
            section = get_args(section)[-1]
            next(path)  # the name of a stage or data set
    return list(section.model_fields)
