"""What a synthetic receipt says: rows of text segments with their places, before anything is drawn."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


def _lexicon(**lists: str) -> dict[str, list[str]]:
    return {name: joined.split("|") for name, joined in lists.items()}


LATIN = _lexicon(
    shop="GOLDEN|KING|STAR|FRESH|CITY|HOME|BEST|LUCKY|GRAND|SUPER|NEW|OCEAN|GREEN|ROYAL|UNION|PACIFIC",
    kind="MART|TRADING|HARDWARE|STATIONERY|BAKERY|CAFE|RESTAURANT|BOOKS|PHARMACY|ENTERPRISE|STORE|SUPPLY",
    form="SDN BHD|LTD|CO.|S/B|INC.|& SONS|GROUP",
    street="JALAN|TAMAN|BANDAR|LORONG|PERSIARAN|MAIN|PARK|STATION|MARKET|BRIDGE|HILL|GARDEN",
    place="KUALA LUMPUR|SETAPAK|SELANGOR|JOHOR BAHRU|PETALING JAYA|SHAH ALAM|KLANG|SUBANG|IPOH",
    item="MILK|BREAD|RICE|COFFEE|TEA|SUGAR|CHICKEN|NOODLE|WATER|JUICE|CABLE|TAPE|BRUSH|PAINT|PEN|PAPER|GLUE|SOAP|"
    "TOWEL|BULB|BATTERY|SCREW|HAMMER|CARROT|ONION|APPLE|BANANA|ORANGE|BUTTER|CHEESE",
    extra="BIG|SMALL|HOT|ICED|FRESH|1KG|500G|2L|6PCS|A4|RED|BLUE|XL|SET|BOX|PACK|250ML",
    header="TAX INVOICE|RECEIPT|CASH SALE|SIMPLIFIED TAX INVOICE|INVOICE|CASH BILL",
    meta="Date|Time|Cashier|Doc No|Invoice|Table|Counter|Member|Terminal|Order No|Ref",
    columns="Item|Qty|Price|Amount|Disc|Tax|Total|RM",
    total="Sub Total|Total Sales|Discount|GST 6%|Service Charge|Rounding|Total Qty|Tax",
    grand="TOTAL|Total (Inclusive of GST)|GRAND TOTAL|AMOUNT DUE|NET TOTAL",
    paid="CASH|CHANGE|VISA|MASTERCARD|Tendered|Balance",
    footer="THANK YOU, PLEASE COME AGAIN|GOODS SOLD ARE NOT RETURNABLE|HAVE A NICE DAY|Please keep the receipt|"
    "EXCHANGE WITHIN 7 DAYS WITH RECEIPT|Customer Service Hotline|www.example.com|POWERED BY POS|Thank you!",
    names="AMIN|TAN|LIM|SITI|KUMAR|LEE|WONG|FATIN|ADMIN|USER",
)
HANGUL = _lexicon(
    shop="우리|행복한|제일|중앙|서울|신선|착한|오늘|푸른|하늘|미소|사랑|별빛|청정",
    kind="마트|상회|식당|카페|약국|서점|문구|베이커리|치킨|분식|편의점|정육점",
    form="(주)|본점|1호점|지점|강남점|역삼점",
    street="테헤란로|강남대로|종로|을지로|세종대로|봉은사로|양재대로|시장길",
    place="서울특별시 강남구|경기도 성남시|부산광역시 해운대구|대전광역시 유성구|서울 마포구",
    item="우유|식빵|쌀|커피|녹차|설탕|닭고기|라면|생수|주스|김치|두부|계란|사과|바나나|감자|양파|비누|수건|건전지",
    extra="대|소|특|1kg|500g|2L|6개입|매운맛|순한맛|세트|국산|수입|(면세)",
    header="영수증|[영 수 증]|신용카드 매출전표|현금영수증|거래명세서",
    meta="일자|시간|담당자|거래번호|사업자번호|테이블|대표자|전화번호|승인번호",
    columns="상품명|단가|수량|금액|합계",
    total="과세물품가액|면세물품가액|부가세|할인금액|합계수량|봉사료|공급가액",
    grand="합계|총 합계|결제금액|받을금액|합 계 금 액",
    paid="현금|거스름돈|신용카드|받은금액|카드결제",
    footer="감사합니다|또 이용해 주세요|교환 환불은 7일 이내|영수증을 지참하시기 바랍니다|"
    "고객센터 1588-0000|포인트 적립 안내",
    names="김민수|이영희|박철수|최지우|정다은|관리자|홍길동",
)


class Segment(NamedTuple):
    """One contiguous text. `anchor` l, m, r with `x` as a fraction of the text column's width."""

    text: str
    anchor: str
    x: float


@dataclass
class Row:
    """One printed row."""

    kind: str  # text, rule (dashes or a line), barcode or logo
    segments: list[Segment]
    scale: float = 1.0  # font size relative to the body's
    bold: bool = False
    after: float = 0.0


def _pick(rng: np.random.Generator, items: list[str]) -> str:
    return items[int(rng.integers(len(items)))]


def _price(rng: np.random.Generator, korean: bool) -> str:
    if korean:
        return f"{int(rng.integers(5, 900)) * 100:,}"
    return f"{float(rng.lognormal(2.2, 1.1)):,.2f}"


def _digits(rng: np.random.Generator, count: int) -> str:
    return "".join(str(int(d)) for d in rng.integers(0, 10, count))


def _header(rng: np.random.Generator, words: dict, anchor: str) -> list[Row]:
    at = {"l": 0.0, "m": 0.5}[anchor]
    rows = [Row("logo", [], scale=float(rng.uniform(2, 4)), after=0.5)] if rng.random() < 0.15 else []
    name = f"{_pick(rng, words['shop'])} {_pick(rng, words['kind'])} {_pick(rng, words['form'])}"
    big, bold = float(rng.uniform(1.0, 1.7)), bool(rng.random() < 0.6)
    rows.append(Row("text", [Segment(name, anchor, at)], big, bold, 0.1))
    number, unit = int(rng.integers(1, 300)), f"{int(rng.integers(1, 30))}/{int(rng.integers(9))}"
    lines = [
        f"({_digits(rng, 6)}-{'XKMHV'[int(rng.integers(5))]})",
        f"NO.{number}, {_pick(rng, words['street'])} {unit},",
        f"{_digits(rng, 5)} {_pick(rng, words['place'])}",
        f"{_pick(rng, words['place'])}",
        f"TEL : {_digits(rng, 2)}-{_digits(rng, 8)}",
        f"GST ID : {_digits(rng, 12)}",
    ]
    keep = sorted(rng.choice(len(lines), int(rng.integers(2, len(lines) + 1)), replace=False).tolist())
    rows += [Row("text", [Segment(lines[k], anchor, at)]) for k in keep]
    if rng.random() < 0.7:
        title = _pick(rng, words["header"])
        rows.append(
            Row("text", [Segment(title, anchor, at)], float(rng.uniform(1, 1.3)), bool(rng.random() < 0.5), 0.3)
        )
    return rows


def _value(rng: np.random.Generator, words: dict) -> str:
    kind = int(rng.integers(4))
    day = f"{int(rng.integers(1, 29)):02d}/{int(rng.integers(1, 13)):02d}/20{int(rng.integers(15, 26))}"
    time = f"{int(rng.integers(8, 22)):02d}:{int(rng.integers(60)):02d}:{int(rng.integers(60)):02d}"
    return (day, time, _digits(rng, int(rng.integers(4, 11))), _pick(rng, words["names"]))[kind]


def _meta(rng: np.random.Generator, words: dict) -> list[Row]:
    rows = []
    column = float(rng.uniform(0.2, 0.35))
    style = int(rng.integers(3))
    for _ in range(int(rng.integers(2, 6))):
        key, value = _pick(rng, words["meta"]), _value(rng, words)
        if style == 0:
            parts = [Segment(f"{key} : {value}", "l", 0.0)]
        elif style == 1:
            parts = [Segment(key, "l", 0.0), Segment(f": {value}", "l", column)]
        else:
            parts = [Segment(f"{key}: {value}", "l", 0.0), Segment(f"{_value(rng, words)}", "r", 1.0)]
        rows.append(Row("text", parts))
    rows[-1].after = 0.3
    return rows


def _item(rng: np.random.Generator, words: dict, style: int, korean: bool) -> list[Row]:
    name = " ".join([_pick(rng, words["item"])] + [_pick(rng, words["extra"]) for _ in range(int(rng.integers(3)))])
    quantity, each, amount = str(int(rng.integers(1, 12))), _price(rng, korean), _price(rng, korean)
    if style == 0:
        return [Row("text", [Segment(name, "l", 0.0), Segment(amount, "r", 1.0)])]
    if style == 1:
        code = Segment(_digits(rng, int(rng.integers(4, 14))), "l", 0.0)
        numbers = [Segment(f"{quantity} X {each}", "r", 0.75), Segment(amount, "r", 1.0)]
        return [Row("text", [Segment(name, "l", 0.0)]), Row("text", [code, *numbers])]
    if style == 2:
        return [
            Row("text", [Segment(f"{quantity} {name}", "l", 0.0), Segment(each, "r", 0.78), Segment(amount, "r", 1.0)])
        ]
    parts = [Segment(quantity, "m", 0.5), Segment(each, "r", 0.76), Segment(amount, "r", 1.0)]
    return [Row("text", [Segment(name, "l", 0.0), *parts])]


def _items(rng: np.random.Generator, words: dict, count: int, korean: bool) -> list[Row]:
    style = int(rng.integers(4))
    rows = []
    if rng.random() < 0.7:
        names = [_pick(rng, words["columns"]) for _ in range(4)]
        places = [("l", 0.0), ("m", 0.5), ("r", 0.76), ("r", 1.0)]
        heads = [Segment(n, a, x) for n, (a, x) in zip(names, places, strict=True)]
        rows.append(Row("text", heads, bold=bool(rng.random() < 0.4)))
        if rng.random() < 0.7:
            rows.append(Row("rule", []))
    for _ in range(count):
        rows += _item(rng, words, style, korean)
    return rows


def _totals(rng: np.random.Generator, words: dict, korean: bool) -> list[Row]:
    edge = float(rng.uniform(0.6, 0.75))
    left = bool(rng.random() < 0.5)
    colon = ":" if rng.random() < 0.4 else ""

    def row(label: str, scale: float = 1.0, bold: bool = False, after: float = 0.0) -> Row:
        label = f"{label} {colon}".strip()
        where = Segment(label, "l", 0.0) if left else Segment(label, "r", edge)
        return Row("text", [where, Segment(_price(rng, korean), "r", 1.0)], scale, bold, after)

    rows = [row(_pick(rng, words["total"])) for _ in range(int(rng.integers(1, 5)))]
    rows.append(row(_pick(rng, words["grand"]), float(rng.uniform(1, 1.5)), bool(rng.random() < 0.6), 0.2))
    rows += [row(_pick(rng, words["paid"])) for _ in range(int(rng.integers(0, 4)))]
    return rows


def _footer(rng: np.random.Generator, words: dict) -> list[Row]:
    scale = float(rng.uniform(0.8, 1.0))
    count = int(rng.integers(1, 5))
    rows = [Row("text", [Segment(_pick(rng, words["footer"]), "m", 0.5)], scale) for _ in range(count)]
    if rng.random() < 0.35:
        rows.append(Row("barcode", [], scale=float(rng.uniform(1.5, 3)), after=0.2))
        rows.append(Row("text", [Segment(_digits(rng, 13), "m", 0.5)], 0.8))
    return rows


def compose(rng: np.random.Generator, max_rows: int, korean: bool = False) -> list[Row]:
    """The rows of one receipt, top to bottom; about `max_rows` of body size, so that it fills its paper."""
    words = HANGUL if korean else LATIN
    anchor = "m" if rng.random() < 0.8 else "l"
    rule = [Row("rule", [])]
    head = _header(rng, words, anchor) + _meta(rng, words) + rule
    tail = rule + _totals(rng, words, korean) + (rule if rng.random() < 0.6 else []) + _footer(rng, words)
    room = max_rows - len(head) - len(tail) - 2
    count = max(1, min(int(rng.integers(2, 30)), int(room / 1.5)))
    return head + _items(rng, words, count, korean) + tail
