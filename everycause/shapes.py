"""Array annotations with shapes, such as Float[Tensor, "batch classes"].

jaxtyping gives them; while the tests run it also checks them. Where it is not installed (explaining an image needs
torch, torchvision, timm and numpy alone) the annotations stay readable and mean the plain array type.
"""

try:
    from jaxtyping import Bool, Float, Float32, Int, Int64, Integer, UInt8
except ImportError:  # pragma: no cover - tried in a process of its own

    class _Plain:
        def __class_getitem__(cls, item: tuple[type, str]) -> type:
            return item[0]

    Bool = Float = Float32 = Int = Int64 = Integer = UInt8 = _Plain  # type: ignore[misc, assignment]

__all__ = ["Bool", "Float", "Float32", "Int", "Int64", "Integer", "UInt8"]
