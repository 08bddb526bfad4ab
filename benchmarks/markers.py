"""Text that a script writes into a page lies between two lines that stay."""


def between(page: str, begin: str, end: str, text: str) -> str:
    """The page with this text between its two lines, whatever was there.

    Args:
        page: The whole page.
        begin: The line before, with its line break.
        end: The line behind it.
        text: What belongs there, with its line break.

    Raises:
        ValueError: A line is missing.
    """
    before, found_begin, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"the page needs the lines {begin.strip()!r} and {end.strip()!r}")
    return f"{before}{begin}{text}{end}{after}"
