"""The wire codec: named sections of values, masks and indices to checked, compact bytes, and back."""

from fedsparse.wire.bits import Bits
from fedsparse.wire.codec import HEADER, UNFOLD_LIMIT, Message, decode, encode, sizes
from fedsparse.wire.dtypes import Carrier, checksum, finite
from fedsparse.wire.error import WireError
from fedsparse.wire.kinds import Section
from fedsparse.wire.quantised import Quantised
from fedsparse.wire.sections import Bitmap, Indices, Masked, Pairs, Values
from fedsparse.wire.spec import BitmapSpec, IndicesSpec, MaskedSpec, PairsSpec, Spec, TernarySpec, ValuesSpec
from fedsparse.wire.ternary import Ternary

__all__ = [
    "HEADER",
    "UNFOLD_LIMIT",
    "Bitmap",
    "BitmapSpec",
    "Bits",
    "Carrier",
    "Indices",
    "IndicesSpec",
    "Masked",
    "MaskedSpec",
    "Message",
    "Pairs",
    "PairsSpec",
    "Quantised",
    "Section",
    "Spec",
    "Ternary",
    "TernarySpec",
    "Values",
    "ValuesSpec",
    "WireError",
    "checksum",
    "decode",
    "encode",
    "finite",
    "sizes",
]
