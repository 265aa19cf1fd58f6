"""Which images a run learns from and is measured on, and how they are prepared; without torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from hiap.options import Section

CLASS_FOLDERS = ("imagenet", "folder")  # photographs of any size, in class folders, tars or shards
ON_DISK = ("cifar10", *CLASS_FOLDERS)  # data sets of photographs, read from data.root one by one
IN_MEMORY = ("digits", "affine-digits", "fashion-mnist")  # those that lie in one tensor
# Data sets that have as many images as they are asked for, and how many where nothing is said.
SIZES = {name: {"train_size": 20_000, "test_size": 10_000} for name in ("affine-digits", "fashion-mnist")}


class DataConfig(Section):
    """Images that a run learns from and is measured on. The two digit sets are embedded (scikit-learn's); the others
    are read from ``root``, fashion-mnist also from where `make fashion` puts it. 'imagenet' has ImageNet's 1,000
    classes, 'folder' is any other set of class folders, tars or shards."""

    # Which images.
    name: Literal["digits", "affine-digits", "fashion-mnist", "cifar10", "imagenet", "folder"] = "affine-digits"
    root: str = ""  # the folder that they lie in
    # How many images, of each class its share (hiap/data/choice.py). None: all, of affine-digits and fashion-mnist
    # 20,000 and 10,000. The seed (not the run's) chooses them, or makes the canvases.
    train_size: int | None = Field(None, ge=1)
    test_size: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0)
    # What accuracies are measured on: the published test images (val/, where there is no other), or a fifth of the
    # training images, which then nothing is trained on. Whatever is tuned is tuned on the validation images.
    measure: Literal["test", "validation"] = "test"
    # imagenet and folder: classes are numbered by their folders' names, sorted as bytes. Names that are numbers (1, 10,
    # 100 or 1, 2, 3?) need a word, since a pretrained network knows its classes by that order.
    class_order: Literal["auto", "name", "number"] = "auto"
    # A8, unstated. 'deit' is DeiT's recipe through timm (random crop, flip, RandAugment, erasing), 'basic' is crop and
    # flip, image by image; 'batch' (ours) crops after padding, flips and erases whole batches of images that are
    # decoded once; 'none' resizes only. The digit sets take 'none', fashion-mnist also 'batch'.
    augment: Literal["none", "basic", "deit", "batch"] = "none"
    # Repeated augmentation (DeiT: 3): each image comes so many times in a row, augmented anew. An epoch is as long as
    # without, and so holds fewer images.
    repeats: int = Field(1, ge=1)
    # Training images that cannot be decoded are replaced by the next one that can, and named; more of them than this,
    # or one among the test images, which each count once, ends the run.
    max_corrupt: int = Field(10, ge=0)
    # Of photographs. None: as the network that the run starts from was trained, else the data set's mean and standard
    # deviation per channel (of pixels in [0, 1]), bicubic, and for ImageNet's test images a crop of 7/8 of the side.
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: Literal["bicubic", "bilinear"] | None = None
    crop_pct: float | None = Field(None, gt=0, le=1)
    crop_mode: Literal["center", "squash", "border"] | None = None  # how a photograph that is not square fits, by timm
    mixup: float = Field(0.0, ge=0)  # alpha of Mixup; 0: off
    cutmix: float = Field(0.0, ge=0)  # alpha of CutMix; 0: off

    @field_validator("mean", "std")
    @classmethod
    def _of_pixels_up_to_one(cls, value: tuple[float, ...] | None, info: ValidationInfo) -> tuple[float, ...] | None:
        if value and not all((0 if info.field_name == "mean" else 1e-6) <= v <= 1 for v in value):
            raise ValueError("expected numbers of pixels in [0, 1], not in [0, 255]")
        return value

    @model_validator(mode="before")
    @classmethod
    def _sizes_where_nothing_is_said(cls, values: Any) -> Any:
        if isinstance(values, dict):
            sizes = (
                SIZES.get(values.get("name", "affine-digits"), {}) if isinstance(values.get("name", ""), str) else {}
            )
            return {**sizes, **{key: value for key, value in values.items() if value is not None or key not in sizes}}
        return values
