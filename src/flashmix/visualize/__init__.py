"""Pictures of what mixers do: matrices between tokens, filters, and spectra of real inputs.

>>> from flashmix.visualize import digit_images, mixer_subject, write_picture
>>> for picture in mixer_subject("local(window=16)", digit_images()).pictures():
...     print(picture.caption, write_picture(picture, Path("pictures")))
"""

from flashmix.visualize.encoders import encoder_subject
from flashmix.visualize.inputs import (
    Input,
    digit_images,
    imdb_reviews,
    text_bytes,
    white_noise,
)
from flashmix.visualize.layers import Layer
from flashmix.visualize.matrices import head_matrices, impulse_response, influence
from flashmix.visualize.picture import FORMATS, Picture, make_folder, write_captions, write_picture
from flashmix.visualize.subject import (
    Subject,
    compare_weights,
    load_mixers,
    mixer_subject,
    trained_subject,
)

__all__ = [
    "FORMATS",
    "Input",
    "Layer",
    "Picture",
    "Subject",
    "compare_weights",
    "digit_images",
    "encoder_subject",
    "head_matrices",
    "imdb_reviews",
    "impulse_response",
    "influence",
    "load_mixers",
    "make_folder",
    "mixer_subject",
    "text_bytes",
    "trained_subject",
    "white_noise",
    "write_captions",
    "write_picture",
]
