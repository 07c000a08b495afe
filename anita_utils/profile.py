"""What does a profile say? The model, the stages and their order, and all that differs between machines.

>>> profile = load_profile("cpu")
>>> override(profile, {"stages.sft.lora.r": 8}, "my trial").stages["sft"].lora.r
8
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

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
from anita_utils.paths import read_text

if TYPE_CHECKING:
    from anita_utils.machine import Machine

PROFILES = Path(__file__).parent / "profiles"
Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROJECTIONS = list(get_args(Projection))
Optimizer = Literal[
    "sgd", "adamw_torch", "adamw_torch_fused", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit",
    "lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit",
]  # fmt: skip
# The orders that the sources give. In a profile `order: journal` stands for its list.
ORDERS = {
    "summary": ["sft", "italian", "dpo"],  # the summary that this course started from
    "paper": ["sft", "dpo"],  # the paper's abstract, where SFT is on English and Italian
    "journal": ["sft", "dpo", "italian"],  # the journal's abstract, and an author's answer (HF#1): SFT on English
}


class Section(BaseModel):
    """A part of a profile: an unknown key is a mistake."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value, info: ValidationInfo):
        """Refuses true and false where 1 and 0 would silently be taken for them."""
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError("should be neither true nor false (nor yes, no, on, off)")
        return value


class Model(Section):
    base: str = Field(description="The base model: a shipped name, a folder, or a name on the Hub.")
    revision: str | None = Field(None, description="The commit of the Hub repository; null means unpinned.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(description="The type unquantised weights are held in.")
    system_in_user: bool = Field(
        False, description="For templates without a system role: system text goes before the first user turn."
    )


class Quantisation(Section):
    """Under the names of transformers' BitsAndBytesConfig."""

    load_in_4bit: bool = Field(description="Whether bitsandbytes holds the weights in 4 bits.")
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field("nf4", description="The 16 levels: normal or plain float.")
    bnb_4bit_use_double_quant: bool = Field(True, description="Quantise the scales too: 4.127 bits, not 4.5.")


class Lora(Section):
    """Under the names of PEFT's LoraConfig."""

    r: int = Field(gt=0, description="The rank of the update.")
    lora_alpha: float = Field(gt=0, description="The update is scaled by lora_alpha / r (/ sqrt(r) with use_rslora).")
    use_rslora: bool = Field(False, description="Rank-stabilised scaling: lora_alpha / sqrt(r).")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    target_modules: list[Projection] = Field(PROJECTIONS, min_length=1, description="The layers that get an adapter.")


class HubData(Section):
    """How a data set on the Hub is read: streamed, shuffled, and cut to a sample."""

    revision: str | None = Field(description="The commit of the repository; null means unpinned.")
    config: str | None = Field(None, description="The configuration; null takes the default one.")
    split: str = Field(description="The split that is read.")
    licence: str = Field(description="Its licence; one with NC in it is said before anything is downloaded.")
    files: str | None = Field(None, description="JSON files to read, by path or hf:// address (* allowed).")
    sample: int | None = Field(gt=0, description="How many rows to take; null takes all.")
    seed: int = Field(42, ge=0, description="The seed of the shuffle that the sample is drawn by.")
    without: list[str] = Field([], description="Rows whose `source` holds one of these words are left out.")


class Stage(Section):
    """From learning_rate on under the names of TRL's SFTConfig and DPOConfig; row_length alone is the course's own."""

    data: Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)] = Field(
        min_length=1, description="The corpora: shipped names, .jsonl files, folders of one, or names under `datasets`."
    )
    samples: dict[str, Annotated[int, Field(gt=0)]] = Field(
        {}, description="How many rows to take of a corpus, by its name in `data`; of the others all."
    )
    examples: int | None = Field(None, gt=0, description="How many examples to take of them; null takes all.")
    lora: Lora = Field(description="The adapter of this stage.")
    learning_rate: float = Field(gt=0, description="The peak learning rate.")
    per_device_train_batch_size: int = Field(gt=0, description="Rows per device and step.")
    gradient_accumulation_steps: int = Field(1, gt=0, description="Steps whose gradients are added for an update.")
    num_train_epochs: float = Field(1.0, gt=0, description="Passes over the data.")
    warmup_steps: float = Field(0.0, ge=0, description="Updates of warm-up; below 1 a share of all.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay.")
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = Field("linear", description="The rate after warm-up.")
    optim: Optimizer = Field("adamw_torch", description="The optimiser, by transformers' name.")
    max_length: int = Field(gt=0, description="Longer examples are cut at this many tokens.")
    row_length: int | None = Field(None, gt=0, description="Pack examples into rows of this length; null pads.")
    gradient_checkpointing: bool = Field(False, description="Compute activations twice to hold fewer of them.")
    beta: float | None = Field(None, gt=0, description="DPO only: how tightly the model is held to its reference.")


class Evaluation(Section):
    # quick, piccola: the course's own, a few items or all. italian: the Italian three of `paper` and more.
    suite: Literal["quick", "piccola", "paper", "italian"] = Field(description="The benchmarks; paper: the authors'.")
    limit: int | None = Field(None, gt=0, description="Items per benchmark; null takes all.")
    probes: int | None = Field(None, gt=0, description="Probes of each kind, evenly taken; null takes all.")
    natural: bool = Field(False, description="Whether Quaderno's questions and prose are measured too.")
    items: Literal["test", "development"] = Field(
        "test", description="Which items of the small world: those to tune a recipe by, or the test's."
    )
    load_in_4bit: bool = Field(False, description="Measure and talk to models in 4 bits; false: in model.dtype.")
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
    rehearsal_of: str | None = Field(None, description="The profile that this one rehearses; null for a real one.")

    _source: str = PrivateAttr("profile")  # the file, for messages
    _file: Path | None = PrivateAttr(None)

    @property
    def file(self) -> Path | None:
        """The file it was read from, if any; its comments name the source of each value."""
        return self._file

    @model_validator(mode="before")
    @classmethod
    def _order_by_name(cls, values):
        """Puts the list in place of an order's name. The paper's order means SFT on two languages: the small world's
        own chats are in both, other corpora in one, so there must be two of them.
        """
        name = values.get("order") if isinstance(values, dict) else None
        if not isinstance(name, str):
            return values
        if name not in ORDERS:
            raise ValueError(f"order: {name!r} is not known: choose {', '.join(ORDERS)}, or list the stages")
        try:
            data = values["stages"]["sft"]["data"]
        except (KeyError, TypeError):
            data = None  # the checks of the fields will say what is missing
        listed = [data] if isinstance(data, str) else data
        if name == "paper" and isinstance(listed, list) and len(listed) == 1 and listed != ["sft"]:
            raise ValueError("order: paper has SFT on English and Italian: list a corpus of each in stages.sft.data")
        return values | {"order": ORDERS[name]}

    @model_validator(mode="after")
    def _stages_fit(self) -> Profile:
        if missing := [stage for stage in self.order if stage not in self.stages]:
            raise ValueError(f"order: '{missing[0]}' has no settings; add stages.{missing[0]} or drop it here")
        if len(set(self.order)) < len(self.order):
            raise ValueError("order: a stage is in it twice; keep one")
        for name, stage in self.stages.items():
            where = f"stages.{name}"
            if name == "dpo" and stage.beta is None:
                raise ValueError(f"{where}.beta: missing: set it, for instance to 0.1")
            if name != "dpo" and stage.beta is not None:
                raise ValueError(f"{where}.beta: only dpo has one: remove it")
            if name == "dpo" and stage.row_length is not None:
                raise ValueError(f"{where}.row_length: TRL's DPO takes no packed rows: set it to null")
            if stage.row_length is not None and stage.row_length < stage.max_length:
                raise ValueError(
                    f"{where}.max_length: {stage.max_length} tokens do not go into rows of {stage.row_length}: "
                    f"lower it, or raise {where}.row_length"
                )
            for place, one in enumerate(stage.data):
                if "/" in one and one not in self.datasets:
                    file = own_file(one)
                    if file is None:
                        raise ValueError(f"{where}.data: nothing is known of '{one}': describe it under datasets.{one}")
                    stage.data[place] = str(file)  # so that a saved run can be read wherever one stands later
                    if one in stage.samples:
                        stage.samples[str(file)] = stage.samples.pop(one)
            if unknown := [one for one in stage.samples if one not in stage.data]:
                raise ValueError(f"{where}.samples: '{unknown[0]}' is not in {where}.data: name one that is")
        return self

    def check(self, machine: Machine) -> None:
        """Raises AnitaError when `machine` cannot do the arithmetic that the profile asks for."""
        asked = [("precision", self.precision, "fp16", "fp32"), ("model.dtype", self.model.dtype, "float16", "float32")]
        for key, value, fp16, fp32 in asked:
            if value == fp16 and machine.gpu is None:
                reason = f"{value} on a CPU is a hundred times slower than float32"
                remedy = f"{fp32}, or use --profile cpu"
            elif value in (fp16, fp32) or machine.bf16:
                continue
            elif machine.gpu is None:
                reason, remedy = f"{value} on a CPU without bf16 instructions is ten times slower than float32", fp32
            else:
                capability = ".".join(map(str, machine.gpu_capability))
                reason, remedy = f"{machine.gpu} (capability {capability}) has no {value}", f"{fp16} or {fp32}"
            raise AnitaError(f"{self._source}: {key}: {reason}: set it to {remedy}")


SECTIONS = {
    "model": Model, "quantisation": Quantisation, "datasets": HubData, "stages": Stage, "lora": Lora,
    "evaluation": Evaluation,
}  # fmt: skip


def own_file(corpus: str) -> Path | None:
    """The file of a corpus that is given by its path: a .jsonl file, or a folder of `anita corpus`; None for a name."""
    inside = Path(corpus) / "train.jsonl"
    return Path(corpus) if corpus.endswith(".jsonl") else inside if inside.is_file() else None


def load_profile(name_or_path: str | Path) -> Profile:
    """The profile of that name in `anita_utils/profiles/`, or in the YAML file at that path."""
    path = Path(name_or_path)
    file = path if path.suffix in {".yaml", ".yml"} else PROFILES / f"{name_or_path}.yaml"
    if not file.is_file():
        known = sorted(file.stem for file in PROFILES.glob("*.yaml"))
        raise AnitaError(f"no profile '{name_or_path}': choose {', '.join(known)}, or the path of a .yaml file")
    profile = parse_profile(read_yaml(file, PROFILES / "cpu.yaml"), shown(file))
    profile._file = file.absolute()
    return profile


class _KeysOnce(yaml.SafeLoader):
    """YAML with each key once in its section; the library would take the last value without a word."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(file: Path, example: Path) -> dict:
    """The keys of a YAML file. AnitaError when there are none to be read; `example` is a file to start from."""
    try:
        values = yaml.load(read_text(file), _KeysOnce)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that there is not
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


def override(profile: Profile, changes: dict[str, Any], source: str) -> Profile:
    """The profile with other values under dotted keys, checked as a file is; messages name `source`."""
    values = profile.model_dump()
    for key, value in changes.items():
        section, (*above, last) = values, key.split(".")
        for depth, part in enumerate(above, start=1):
            sections = [name for name, below in section.items() if isinstance(below, dict)]
            if part not in sections:
                raise AnitaError(f"{source}: {'.'.join(above[:depth])}: no such section: {_remedy(part, sections)}")
            section = section[part]
        section[last] = value
    return parse_profile(values, source)


def _explain(error: ValidationError) -> str:
    """The first complaint in one line: key, what is wrong, remedy."""
    # Unknown keys come before missing ones, for they may be these by another name.
    first, *others = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    key = ".".join(map(str, first["loc"])).removesuffix(".[key]")
    if first["type"] == "extra_forbidden":
        *above, unknown = first["loc"]
        section = next((SECTIONS[name] for name in reversed(above) if name in SECTIONS), Profile)
        complaint = f"{key}: unknown key: {_remedy(str(unknown), section.model_fields)}"
    elif first["type"] == "missing":
        complaint = f"{key}: missing: add it"
    elif first["type"] == "value_error" and not first["loc"]:  # of the checks above, which name the key themselves
        complaint = str(first["ctx"]["error"])
    elif first["type"] in {"dict_type", "model_type"}:
        complaint = f"{key}: {reprlib.repr(first['input'])} will not do: it should hold keys of its own"
    else:
        wrong = first["msg"].removeprefix("Value error, ")
        complaint = f"{key}: {reprlib.repr(first['input'])} will not do: {wrong[0].lower()}{wrong[1:]}"
    return " ".join(complaint.split()) + (f" (and {len(others)} more)" if others else "")


def _remedy(key: str, known: Iterable[str]) -> str:
    """The known key that an unknown one probably means, `epochs` for instance num_train_epochs; else all of them."""
    stem = key.removesuffix("s")
    close = [name for name in known if len(stem) > 2 and stem in name] + get_close_matches(key, known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"remove it; known here: {', '.join(known)}"
