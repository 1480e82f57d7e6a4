"""Pictures for the tests of decoders."""

import io

import numpy as np


def gradient(height=40, width=60):
    """Returns a picture (h w 3, uint8) with four different corners."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * x / width, 255 * y / height, 0 * x + 90], axis=-1).astype(np.uint8)


def encoded(picture, kind, **options):
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()
