from dataclasses import dataclass
@dataclass(frozen=True, kw_only=True, slots=True)
class PhotoQuality:
    width: int
    height: int
    brightness: float
    sharpness: float
    flags: tuple[str, ...]
