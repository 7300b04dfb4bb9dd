"""What the torch model reads of one picture, by a family's geometry: for tests that hold it against transformers."""

import numpy as np

from lrkit.families.protocols import Geometry, Grid
from lrkit.pictures.input import ImageSource
from lrkit.pictures.load import load_image


def preprocess(image: ImageSource, geometry: Geometry) -> tuple[np.ndarray, Grid]:
    """Values as `Geometry.pixel_values` gives them, and the picture's grid."""
    picture = load_image(image)
    return geometry.pixel_values(geometry.cut(picture)), geometry.grid(*picture.size)
