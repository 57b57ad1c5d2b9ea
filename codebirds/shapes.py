"""Array annotations with shapes, such as Float[np.ndarray, "batch parts"].

They come from jaxtyping, which checks them while the tests run. Where it is not installed (Codebirds needs numpy alone)
the annotations mean the plain array type.
"""

try:
    from jaxtyping import Bool, Float, Float32, Int, Int64, UInt8
except ImportError:  # pragma: no cover - tried in a process of its own

    class _Plain:
        def __class_getitem__(cls, item: tuple[type, str]) -> type:
            return item[0]

    Bool = Float = Float32 = Int = Int64 = UInt8 = _Plain  # type: ignore[misc, assignment]

__all__ = ["Bool", "Float", "Float32", "Int", "Int64", "UInt8"]
