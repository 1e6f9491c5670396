from receipt_folders import HARMLESS, NASTY

from pipelines.errors import printable


def test_printable_escapes_what_a_terminal_obeys_and_nothing_else():
    assert printable(NASTY) == HARMLESS
    for kept in ("Rechnung äöü €.jpg", "영수증.png", "a b'c\"d\\e|f", "tab-less"):
        assert printable(kept) == kept
    assert printable(printable(NASTY)) == HARMLESS
    printable(NASTY).encode()
