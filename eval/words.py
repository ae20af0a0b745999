"""How a report writes its numbers, the same on every surface."""


def perplexity(value: float | None) -> str:
    """`13.974`, `158.6`, `12,345`; what is infinite or unknown is a dash."""
    if value is None:
        return "-"
    if value >= 10_000:
        return f"{value:,.0f}"
    return f"{value:.3f}" if value < 100 else f"{value:.1f}"


def with_error(value: float | None, error: float | None, digits: int) -> str:
    """`1.284 ± 0.003`."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def scaled(number: float) -> str:
    """Three digits and the prefix of a thousand: 7.87M."""
    for prefix in ("", "k", "M", "G"):
        if number < 999.5:
            return f"{number:.{0 if prefix == '' else max(0, 3 - len(str(int(number))))}f}{prefix}"
        number /= 1000
    return f"{number:.2f}T"


def nbytes(number: float | None) -> str:
    """`5.22 MB`."""
    if number is None:
        return "-"
    text = scaled(number)
    return f"{text} B" if text[-1].isdigit() else f"{text[:-1]} {text[-1]}B"


def seconds(value: float | None) -> str:
    """Three digits of s, ms or µs."""
    if value is None:
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size or unit == "µs":
            return f"{_three(value / size)} {unit}"
    raise AssertionError("the last unit takes all")


def percent(share: float | None, digits: int = 1) -> str:
    """`84.2%`."""
    return "-" if share is None else f"{100 * share:.{digits}f}%"


def times(factor: float | None) -> str:
    """`4×`, `1.28×`, `14.6×`."""
    return "-" if factor is None else f"{_three(factor).removesuffix('.00').removesuffix('.0')}×"


def plain(value: float | None, digits: int = 4) -> str:
    """So many significant digits, without an exponent where none is needed."""
    return "-" if value is None else f"{value:.{digits}g}"


def printable(text: str) -> str:
    """Text without what no page can hold: control characters and lone surrogates become U+FFFD."""
    return "".join("\ufffd" if _is_bad(letter) else letter for letter in text)


def _is_bad(letter: str) -> bool:
    code = ord(letter)
    control = (code < 32 and letter not in "\n\t") or 0x7F <= code < 0xA0
    return control or 0xD800 <= code < 0xE000 or letter in "\ufffe\uffff"


def _three(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
