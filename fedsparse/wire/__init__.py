"""The wire codec: named sections of values, masks and indices to checked, compact bytes, and back."""

from fedsparse.wire.codec import HEADER, UNFOLD_LIMIT, Message, decode, encode, sizes
from fedsparse.wire.dtypes import finite
from fedsparse.wire.error import WireError
from fedsparse.wire.sections import Bitmap, Indices, Masked, Pairs, Section, Values
from fedsparse.wire.spec import BitmapSpec, IndicesSpec, MaskedSpec, PairsSpec, Spec, ValuesSpec

__all__ = [
    "HEADER",
    "UNFOLD_LIMIT",
    "Bitmap",
    "BitmapSpec",
    "Indices",
    "IndicesSpec",
    "Masked",
    "MaskedSpec",
    "Message",
    "Pairs",
    "PairsSpec",
    "Section",
    "Spec",
    "Values",
    "ValuesSpec",
    "WireError",
    "decode",
    "encode",
    "finite",
    "sizes",
]
