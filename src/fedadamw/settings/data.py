"""The section `data`: which samples, what is learned from them, how images are augmented."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from fedadamw.settings import glue
from fedadamw.settings.section import Section
from fedadamw.settings.templates import parse_template
from fedadamw.validation import check, check_one_of, shorten

IMAGE, TEXT, LANGUAGE, PYTHON = "image", "text", "causal-lm", "python"
DATA_TASKS = (IMAGE, TEXT, LANGUAGE, PYTHON, *glue.TASKS)
AUTO = "auto"
AUTO_LENGTH = 2048  # tokens of the longest text with max_length=auto: models that take 128k would fill any memory
MIN_LENGTH = 8


class DataSettings(Section):
    """Which samples, what is learned from them, and how images are augmented."""

    task: str = Field(
        default=IMAGE,
        description=f"What is learned: {IMAGE} or {TEXT}: the class of an image or a text; {LANGUAGE}: the next token; "
        f"a task of GLUE: {', '.join(glue.TASKS)}; or {PYTHON}: model and data are objects given to "
        "`fedadamw.simulate`.",
        json_schema_extra={"enum": list(DATA_TASKS)},
    )
    source: str = Field(
        default="digits",
        description="Where the samples are: digits (comes with scikit-learn), a folder, a CSV, JSON lines or Parquet "
        "file, or a hub id. GLUE's tasks need none: they have the hub's nyu-mll/glue.",
    )
    config: str | None = Field(
        default=None, description="The data set's configuration. Needed only if the data set has several."
    )
    image_column: str | None = Field(default=None, description="Column of the images; null finds it by its type.")
    label_column: str | None = Field(default=None, description="Column of the labels; null finds it by its type.")
    classes: tuple[str, ...] | None = Field(
        default=None,
        description="For partition.kind=nodes, if the server has no data: the names of the classes, in the model's "
        "order; [] if numbers or tokens are predicted. data.source is not used then. Null: the server has a sample, "
        "whose training set has the classes.",
    )
    text_column: str | None = Field(default=None, description="Column of the texts; null finds it by its name.")
    text_pair_column: str | None = Field(
        default=None, description="Column of a second text, read together with the first. Null: single texts."
    )
    prompt_column: str | None = Field(
        default=None, description=f"For {LANGUAGE}: column of the prompts, which are read but not learned. Null: none."
    )
    response_column: str | None = Field(
        default=None, description=f"For {LANGUAGE}: column of the responses, which are learned. Null: none."
    )
    prompt: str | None = Field(
        default=None,
        description=f"For {LANGUAGE}, with data.response, instead of columns: a prompt as a template of any columns, "
        "whose names are in braces: 'Is this review positive or negative? {sentence}'. Null: none.",
    )
    response: str | None = Field(
        default=None,
        description=f"For {LANGUAGE}: a response as a template, such as '{{label}}': a class label becomes the class's "
        "name. Null: none.",
    )
    metrics: tuple[Literal["exact-match", "rouge-l", "choice", "choice-norm"], ...] = Field(
        default=(),
        description=f"For {LANGUAGE}: how answers to held-out prompts are scored, the main one first. exact-match and "
        "rouge-l: of the answer that the model writes; choice: whether the right one of data.choices is the likeliest; "
        "choice-norm: likeliest by character. [] writes no answers, which is much faster.",
    )
    answers: int = Field(
        default=100, ge=1, description="For data.metrics: held-out prompts that are answered in an evaluation, at most."
    )
    answer_tokens: int = Field(default=32, ge=1, description="For data.metrics: longest answer in tokens.")
    choices: tuple[str, ...] = Field(
        default=(), description="For the metrics choice and choice-norm: the possible answers, two or more."
    )
    packing: bool = Field(
        default=False,
        description=f"For {LANGUAGE}: put several short texts of a micro-batch into one row. Each is attended to and "
        "averaged as if it were alone; less padding, so faster. Set it for texts of very different lengths.",
    )
    max_length: int | str | None = Field(
        default=AUTO,
        description=f"Longest text in tokens, at least {MIN_LENGTH}; longer ones are cut. {AUTO}: what the model "
        f"takes, at most {AUTO_LENGTH:,}. Null: what the model takes, however long. Lower it to save time and memory.",
    )
    test_source: str | None = Field(
        default=None, description="Folder, file or hub id of the held-out samples. Null: a split of data.source."
    )
    test_split: str | None = Field(
        default=None,
        description="Split of the held-out samples. Null: the first of test, validation, valid and val; GLUE's tasks "
        "have their own.",
    )
    every: int = Field(
        default=1,
        ge=1,
        description="Use only every so many rows of the training set, the first included: 80 for windows of 80 "
        "characters that slide by one, whose texts would otherwise be learned 80 times. 1: all.",
    )
    max_train: int | None = Field(
        default=None, ge=1, description="Use only this many training samples, drawn at random. Null: all."
    )
    max_test: int | None = Field(
        default=None, ge=1, description="Use only this many held-out samples, drawn at random. Null: all."
    )
    validation: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the training set, from 0 to below 1, to hold out instead of the test set. "
        "Set it while you choose settings.",
    )
    resident: bool = Field(
        default=True,
        description="Keep the training pixels on the device. Set false for images larger than memory: they stay on "
        "disk and are read ahead of the training.",
    )
    image_size: int | None = Field(
        default=None,
        ge=1,
        le=8192,
        description="Pixels, from 1 to 8192: the shorter side is resized to this and the middle cut out. Null: the "
        "images' own size if all have the same, or that of a pretrained model's image processor.",
    )
    image_mode: Literal["auto", "grey", "rgb"] = Field(
        default="auto", description="Colours of the images. auto: rgb if any training image has colour, else grey."
    )
    mean: tuple[float, ...] | None = Field(
        default=None,
        description="Mean of each channel of pixels scaled to [0, 1], one number for all or one each, to normalise "
        "them; with data.std. Null: the model's image processor's, or the training images'.",
    )
    std: tuple[float, ...] | None = Field(
        default=None, description="Standard deviation of each channel of scaled pixels. Null: as for data.mean."
    )
    on_bad: Literal["error", "skip"] = Field(
        default="error",
        description="If an image cannot be read: error stops and names it; skip leaves it out and counts it.",
    )
    crop_padding: int = Field(
        default=0,
        ge=0,
        description="Augmentation: random crops of an image padded by this many pixels on each side. 0: no crops.",
    )
    flip: bool = Field(default=False, description="Augmentation: flip images left to right at random.")

    @field_validator("task")
    @classmethod
    def _check_task(cls, value: str) -> str:
        check_one_of("data.task", value, DATA_TASKS)
        return value

    @field_validator("metrics", mode="before")
    @classmethod
    def _read_metrics(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("choices", "classes", mode="before")
    @classmethod
    def _read_words(cls, value: object, info: ValidationInfo) -> object:
        """Accept numbers; YAML's other words for true and false are not known any more."""
        if value is None:
            return None
        words = tuple(value) if isinstance(value, list | tuple) else (value,)
        quoted = "YAML reads yes, no, on and off as true and false; put them in quotes: ['yes', 'no']"
        check(not any(isinstance(word, bool) for word in words), f"data.{info.field_name}: {quoted}")
        return tuple(str(word) if isinstance(word, int | float) else word for word in words)

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        names = value or ()
        twice = next((name for name in names if names.count(name) > 1), None)
        check(twice is None, f"data.classes: {twice!r} is there twice")
        check(all(name.strip() for name in names), "data.classes: a class has no name")
        check(len(names) != 1, f"data.classes: {shorten(names[:1])} is one class; give two or more, or [] for none")
        return value

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _read_channels(cls, value: object) -> object:
        return (value,) if isinstance(value, int | float) and not isinstance(value, bool) else value

    @field_validator("max_length", mode="before")
    @classmethod
    def _check_length(cls, value: object) -> object:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        valid = value in (None, AUTO) or (type(value) is int and value >= MIN_LENGTH)
        check(valid, f"data.max_length={shorten(value)}: give at least {MIN_LENGTH} tokens, {AUTO}, or null")
        return value

    @field_validator("image_mode", mode="before")
    @classmethod
    def _normalise_mode(cls, value: object) -> object:
        return {"l": "grey", "gray": "grey"}.get(value.lower(), value.lower()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_together(self) -> "DataSettings":
        both = (self.prompt is None) == (self.response is None)
        check(both, "data.prompt and data.response go together: give both")
        for setting, template in (("data.prompt", self.prompt), ("data.response", self.response)):
            if template is not None:
                parse_template(setting, template)
        columns = self.prompt is not None and bool(self.prompt_column or self.response_column or self.text_column)
        check(not columns, "data.prompt is a template: give it, or data.prompt_column or data.text_column")
        self._check_channels()
        chosen = any(name.startswith("choice") for name in self.metrics)
        check(not chosen or len(set(self.choices)) > 1, "data.metrics=choice needs data.choices, two or more answers")
        return self

    def _check_channels(self) -> None:
        """Raise InputError if mean and std of the pixels are not those of images scaled to [0, 1]."""
        if self.mean is None or self.std is None:
            check(self.mean is self.std, "data.mean and data.std go together: give both")
            return
        sizes = len(self.mean) == len(self.std) and len(self.mean) in (1, 3)
        check(sizes, f"data.mean has {len(self.mean)} numbers and data.std {len(self.std)}: give one or three of each")
        scaled = all(0 <= m <= 1 for m in self.mean) and all(0 < s <= 1 for s in self.std)
        check(scaled, "data.mean is from 0 to 1 and data.std above 0, up to 1: of pixels divided by 255")

    @property
    def is_text(self) -> bool:
        """Whether the samples are texts."""
        return self.task not in (IMAGE, PYTHON)
