"""What does an ablation try? Arms, each a change of a profile, and the claims that they judge, from a YAML file.

>>> ablation = load_ablation("cpu")                 # or the path of a .yaml file
>>> arm_profile(load_profile("cpu"), "sft_dpo", ablation.arms["sft_dpo"])[1]
['sft', 'dpo']
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from anita_utils import AnitaError, shown
from anita_utils.profile import ORDERS, Profile, override, read_yaml

ABLATIONS = Path(__file__).parent / "designs"
# What no arm may set: the run's own, and how it is measured, or arms could not be compared.
FIXED = ("name", "rehearsal_of", "seed", "evaluation")
Name = Annotated[str, Field(pattern=r"^[\w-]+$")]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Arm(Part):
    asks: str = Field(description="The question it answers, in one sentence.")
    set: dict[str, Any] = Field({}, description="Keys of the profile, dotted, and what they are in this arm.")
    points: int = Field(0, ge=0, description="How often its last stage is measured while it trains.")


class Claim(Part):
    says: str = Field(description="The claim, in one sentence.")
    contrast: dict[str, float] = Field(description="The difference it is about: a weight for each arm, adding up to 0.")
    kind: Literal["higher", "kept", "differs"] = Field("higher", description="What it says of the difference.")
    worth: float = Field(gt=0, description="The smallest difference worth naming.")
    measures: list[str] = Field(min_length=1, description='Where it is tested: "metric language split".')
    family: str = Field("recipe", description="The claims that p-values are corrected over together.")


class Ablation(Part):
    """A file of arms and claims. Load it with `load_ablation`."""

    arms: dict[Name, Arm] = Field(min_length=1, description="The arms.")
    measures: list[str] = Field([], description="The measures of the table and of the effects.")
    claims: dict[Name, Claim] = Field({}, description="What the arms judge, stated before any result.")
    items: int | None = Field(None, gt=0, description="Items per benchmark; null takes the profile's `limit`.")

    _file: Path = PrivateAttr()

    def family(self, name: str) -> dict[str, Claim]:
        """The claims of that family."""
        return {key: claim for key, claim in self.claims.items() if claim.family == name}

    def factorial(self) -> dict[frozenset[str], str]:
        """{stages: arm} of the arms that set the order alone, as in the summary; empty unless all eight are there."""
        found: dict[frozenset[str], str] = {}
        for name, arm in self.arms.items():
            order = arm.set.get("order")
            stages = ORDERS.get(order, order) if isinstance(order, str) else order
            if set(arm.set) == {"order"} and stages == [one for one in ORDERS["summary"] if one in stages]:
                found.setdefault(frozenset(stages), name)
        return found if len(found) == 2 ** len(ORDERS["summary"]) else {}

    @property
    def file(self) -> Path:
        return self._file

    @property
    def digest(self) -> str:
        """A hash of all that it says."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    @model_validator(mode="after")
    def _contrasts_fit(self) -> Ablation:
        for name, claim in self.claims.items():
            unknown = sorted(set(claim.contrast) - set(self.arms))
            if unknown:
                raise ValueError(f"claims.{name}.contrast: no arm '{unknown[0]}': choose {', '.join(self.arms)}")
            if abs(sum(claim.contrast.values())) > 1e-9:
                raise ValueError(f"claims.{name}.contrast: the weights must add up to 0, as they compare arms")
        idle = [name for name, arm in self.arms.items() if arm.points and arm.set.get("order") == []]
        if idle:
            raise ValueError(f"arms.{idle[0]}.points: the base is not trained, so there is no way to measure on")
        return self


def ablation_file(name_or_path: str | Path) -> Path:
    """The file with the arms for the profile of that name, or the path itself. AnitaError where there is none."""
    path = Path(name_or_path)
    file = path if path.suffix in {".yaml", ".yml"} else ABLATIONS / f"{name_or_path}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(file.stem for file in ABLATIONS.glob("*.yaml")))
        raise AnitaError(f"no arms for '{name_or_path}', only for {known}: write some and name them with --arms FILE")
    return file


def load_ablation(name_or_path: str | Path) -> Ablation:
    """The arms for the profile of that name in `anita_utils/ablation/designs/`, or in the YAML file at that path.

    A file that begins with `like: NAME` starts from that profile's arms and claims; one that is null is left out.
    AnitaError, in one line, for a file that is not there, an unknown key or a wrong value.
    """
    file = ablation_file(name_or_path)
    values = read_yaml(file, ABLATIONS / "cpu.yaml")
    if "like" in values:
        base = read_yaml(ablation_file(values.pop("like")), ABLATIONS / "cpu.yaml")
        for section in ("arms", "claims"):
            first, own = base.get(section), values.get(section)
            if isinstance(first, dict) and isinstance(own, dict):
                values[section] = {name: part for name, part in (first | own).items() if part is not None}
        values = base | values
    try:
        ablation = Ablation.model_validate(values)
    except ValidationError as error:
        raise AnitaError(f"{shown(file)}: {_explain(error)}") from error
    ablation._file = file
    return ablation


def _explain(error: ValidationError) -> str:
    """The first complaint in one line: key, what is wrong, remedy."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"])).removesuffix(".[key]")
    if first["type"] == "missing":
        return f"{key}: missing: add it"
    if first["type"] == "extra_forbidden":
        part = {"arms": Arm, "claims": Claim}.get(first["loc"][0], Ablation)
        return f"{key}: unknown key: known here: {', '.join(part.model_fields)}"
    wrong = first["msg"].removeprefix("Value error, ")
    return f"{key}: {wrong}: correct it" if key else wrong


def as_measured(profile: Profile, ablation: Ablation) -> Profile:
    """The profile that arms are measured with: of each benchmark as many items as the file of arms says."""
    if ablation.items is None:
        return profile
    return override(profile, {"evaluation.limit": ablation.items}, f"{shown(ablation.file)}: items")


def arm_profile(profile: Profile, name: str, arm: Arm) -> tuple[Profile, list[str]]:
    """The profile as an arm has it, and the stages that the arm runs. AnitaError for a key or value that cannot be."""
    fixed = [key for key in arm.set if key.partition(".")[0] in FIXED]
    if fixed:
        raise AnitaError(f"arm '{name}': {fixed[0]}: must be the same in all arms: set it in the profile")
    changes = {key: value for key, value in arm.set.items() if key != "order" or value != []}
    changed = override(profile, changes, f"arm '{name}'")
    order = [] if arm.set.get("order") == [] else changed.order
    for key in arm.set:
        section, _, rest = key.partition(".")
        stage = rest.partition(".")[0]
        if section == "stages" and stage not in order:
            runs = ", ".join(order) or "no stage"
            raise AnitaError(f"arm '{name}': {key}: changes nothing, as the arm runs {runs}: drop it, or set order")
    return changed, order
