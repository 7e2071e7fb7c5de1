"""Class names in words: tables for well-known data sets whose classes are codes.

A guide that reads text needs to be told what to look for; words that have several meanings are
spelled out ("construction crane").
"""

import re
from collections.abc import Mapping, Sequence

from cgd.guides.prompts import DEFAULT_TEMPLATES, TEMPLATES

GTSRB = (
    "20 km/h speed limit",
    "30 km/h speed limit",
    "50 km/h speed limit",
    "60 km/h speed limit",
    "70 km/h speed limit",
    "80 km/h speed limit",
    "end of 80 km/h speed limit",
    "100 km/h speed limit",
    "120 km/h speed limit",
    "no overtaking",
    "no overtaking by trucks",
    "crossroads with right of way",
    "priority road",
    "yield",
    "stop",
    "no vehicles allowed",
    "no trucks allowed",
    "no entry",
    "general danger",
    "dangerous curve to the left",
    "dangerous curve to the right",
    "double curve",
    "bumpy road",
    "slippery road",
    "road narrows on the right",
    "road works",
    "traffic lights ahead",
    "pedestrians ahead",
    "children crossing",
    "bicycles crossing",
    "ice or snow ahead",
    "wild animals crossing",
    "end of all restrictions",
    "turn right ahead",
    "turn left ahead",
    "straight ahead only",
    "straight ahead or turn right",
    "straight ahead or turn left",
    "keep right",
    "keep left",
    "roundabout",
    "end of no overtaking",
    "end of no overtaking by trucks",
)
"""The 43 signs of the German Traffic Sign Recognition Benchmark, in the official order; its
folders are called 00000 to 00042."""

GTSRB_FOLDERS = {f"{number:05}": name for number, name in enumerate(GTSRB)}

TINY_IMAGENET = {
    "n01443537": "goldfish",
    "n01629819": "fire salamander",
    "n01641577": "bullfrog",
    "n01644900": "tailed frog",
    "n01698640": "American alligator",
    "n01742172": "boa constrictor",
    "n01768244": "trilobite fossil",
    "n01770393": "scorpion",
    "n01774384": "black widow spider",
    "n01774750": "tarantula",
    "n01784675": "centipede",
    "n01855672": "goose",
    "n01882714": "koala",
    "n01910747": "jellyfish",
    "n01917289": "brain coral",
    "n01944390": "snail",
    "n01945685": "slug",
    "n01950731": "sea slug",
    "n01983481": "American lobster",
    "n01984695": "spiny lobster",
    "n02002724": "black stork",
    "n02056570": "king penguin",
    "n02058221": "albatross",
    "n02074367": "dugong",
    "n02085620": "Chihuahua dog",
    "n02094433": "Yorkshire terrier",
    "n02099601": "golden retriever",
    "n02099712": "Labrador retriever",
    "n02106662": "German shepherd dog",
    "n02113799": "standard poodle",
    "n02123045": "tabby cat",
    "n02123394": "Persian cat",
    "n02124075": "Egyptian cat",
    "n02125311": "cougar",
    "n02129165": "lion",
    "n02132136": "brown bear",
    "n02165456": "ladybug",
    "n02190166": "fly",
    "n02206856": "bee",
    "n02226429": "grasshopper",
    "n02231487": "stick insect",
    "n02233338": "cockroach",
    "n02236044": "praying mantis",
    "n02268443": "dragonfly",
    "n02279972": "monarch butterfly",
    "n02281406": "sulphur butterfly",
    "n02321529": "sea cucumber",
    "n02364673": "guinea pig",
    "n02395406": "pig",
    "n02403003": "ox",
    "n02410509": "bison",
    "n02415577": "bighorn sheep",
    "n02423022": "gazelle",
    "n02437312": "dromedary camel",
    "n02480495": "orangutan",
    "n02481823": "chimpanzee",
    "n02486410": "baboon",
    "n02504458": "African elephant",
    "n02509815": "red panda",
    "n02666196": "abacus",
    "n02669723": "academic gown",
    "n02699494": "altar",
    "n02730930": "apron",
    "n02769748": "backpack",
    "n02788148": "banister",
    "n02791270": "barbershop",
    "n02793495": "barn",
    "n02795169": "barrel",
    "n02802426": "basketball",
    "n02808440": "bathtub",
    "n02814533": "station wagon",
    "n02814860": "lighthouse",
    "n02815834": "laboratory beaker",
    "n02823428": "beer bottle",
    "n02837789": "bikini",
    "n02841315": "pair of binoculars",
    "n02843684": "birdhouse",
    "n02883205": "bow tie",
    "n02892201": "brass memorial plaque",
    "n02906734": "broom",
    "n02909870": "bucket",
    "n02917067": "bullet train",
    "n02927161": "butcher shop",
    "n02948072": "candle",
    "n02950826": "cannon",
    "n02963159": "cardigan sweater",
    "n02977058": "cash machine",
    "n02988304": "CD player",
    "n02999410": "metal chain",
    "n03014705": "storage chest",
    "n03026506": "Christmas stocking",
    "n03042490": "cliff dwelling",
    "n03085013": "computer keyboard",
    "n03089624": "candy store",
    "n03100240": "convertible car",
    "n03126707": "construction crane",
    "n03160309": "dam",
    "n03179701": "desk",
    "n03201208": "dining table",
    "n03250847": "drumstick for a drum",
    "n03255030": "dumbbell",
    "n03355925": "flagpole",
    "n03388043": "fountain",
    "n03393912": "freight car",
    "n03400231": "frying pan",
    "n03404251": "fur coat",
    "n03424325": "gas mask",
    "n03444034": "go-kart",
    "n03447447": "gondola boat",
    "n03544143": "hourglass",
    "n03584254": "iPod",
    "n03599486": "rickshaw",
    "n03617480": "kimono",
    "n03637318": "lampshade",
    "n03649909": "lawn mower",
    "n03662601": "lifeboat",
    "n03670208": "limousine",
    "n03706229": "magnetic compass",
    "n03733131": "maypole",
    "n03763968": "military uniform",
    "n03770439": "miniskirt",
    "n03796401": "moving van",
    "n03804744": "metal nail",
    "n03814639": "neck brace",
    "n03837869": "obelisk",
    "n03838899": "oboe",
    "n03854065": "pipe organ",
    "n03891332": "parking meter",
    "n03902125": "pay phone",
    "n03930313": "picket fence",
    "n03937543": "pill bottle",
    "n03970156": "plunger",
    "n03976657": "pole",
    "n03977966": "police van",
    "n03980874": "poncho",
    "n03983396": "soda bottle",
    "n03992509": "potter's wheel",
    "n04008634": "missile",
    "n04023962": "punching bag",
    "n04067472": "fishing reel",
    "n04070727": "refrigerator",
    "n04074963": "remote control",
    "n04099969": "rocking chair",
    "n04118538": "rugby ball",
    "n04133789": "sandal",
    "n04146614": "school bus",
    "n04149813": "scoreboard",
    "n04179913": "sewing machine",
    "n04251144": "snorkel",
    "n04254777": "sock",
    "n04259630": "sombrero",
    "n04265275": "space heater",
    "n04275548": "spider web",
    "n04285008": "sports car",
    "n04311004": "steel arch bridge",
    "n04328186": "stopwatch",
    "n04356056": "pair of sunglasses",
    "n04366367": "suspension bridge",
    "n04371430": "pair of swimming trunks",
    "n04376876": "syringe",
    "n04398044": "teapot",
    "n04399382": "teddy bear",
    "n04417672": "thatched roof",
    "n04456115": "flaming torch",
    "n04465501": "tractor",
    "n04486054": "triumphal arch",
    "n04487081": "trolleybus",
    "n04501370": "turnstile",
    "n04507155": "umbrella",
    "n04532106": "priest's vestment",
    "n04532670": "viaduct",
    "n04540053": "volleyball",
    "n04560804": "water jug",
    "n04562935": "water tower",
    "n04596742": "wok",
    "n04597913": "wooden spoon",
    "n06596364": "comic book",
    "n07579787": "plate of food",
    "n07583066": "bowl of guacamole",
    "n07614500": "serving of ice cream",
    "n07615774": "popsicle",
    "n07695742": "pretzel",
    "n07711569": "serving of mashed potato",
    "n07715103": "cauliflower",
    "n07720875": "bell pepper",
    "n07734744": "mushroom",
    "n07747607": "orange fruit",
    "n07749582": "lemon",
    "n07753592": "banana",
    "n07768694": "pomegranate",
    "n07871810": "meat loaf",
    "n07873807": "pizza",
    "n07875152": "pot pie",
    "n07920052": "cup of espresso",
    "n09193705": "mountain in the Alps",
    "n09246464": "cliff",
    "n09256479": "coral reef",
    "n09332890": "lake shore",
    "n09428293": "sea coast",
    "n12267677": "acorn",
}
"""WordNet ids of the 200 classes of Tiny-ImageNet -> words."""

MAX_LETTERS = 200

_CODES = re.compile(
    r"[\d\W_]+"  # 7, 00017, 3-12
    r"|[a-z]{1,2}[\W_]?\d+"  # n01440764, c12, id_3
    r"|(class|label|category|folder|object|type|cls|cat|obj|lbl)[\W_]?\d+"
    r"|0x[0-9a-f]+|(?=.*\d)[0-9a-f]{6,}",  # hexadecimal; with a digit, since "facade" is a word
    re.IGNORECASE | re.ASCII,
)


def readable(classes: Sequence[str]) -> tuple[str, ...]:
    """Return what to call the classes in a prompt.

    The folder names of GTSRB (all 43) and the WordNet ids of Tiny-ImageNet (any of them) are
    replaced by words; in other names underscores become spaces, and only the first
    `MAX_LETTERS` letters count, since no text encoder reads more.

    >>> readable(["n02129165", "n03126707"])
    ('lion', 'construction crane')
    >>> readable(["grand_piano", "7"])
    ('grand piano', '7')
    """
    words: Mapping[str, str] = {}
    if set(classes) == set(GTSRB_FOLDERS):
        words = GTSRB_FOLDERS
    elif set(classes) <= set(TINY_IMAGENET):
        words = TINY_IMAGENET
    return tuple(words.get(name) or _spaced(name[:MAX_LETTERS]) for name in classes)


def _spaced(name: str) -> str:
    return " ".join(name.replace("_", " ").split())


def default_templates(classes: Sequence[str]) -> tuple[str, ...]:
    """Choose the templates that suit the classes: those for signs if they are GTSRB's.

    >>> default_templates(["cat", "dog"])
    ('a photo of a {}.',)
    """
    signs = set(readable(classes)) == set(GTSRB)
    return TEMPLATES["signs" if signs else DEFAULT_TEMPLATES]


def code_like(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the class names that mean nothing to a text encoder, because they look like codes.

    Codes that `readable` knows are not among them.

    >>> code_like(["n01440764", "00017", "7", "class_3", "c12", "3fa94b", "cat", "ox", "facade"])
    ('n01440764', '00017', '7', 'class_3', 'c12', '3fa94b')
    >>> code_like(["n02129165", "n03126707"])
    ()
    """
    words = readable(classes)
    return tuple(
        name
        for name, word in zip(classes, words, strict=True)
        if _CODES.fullmatch(word.replace(" ", "_"))
    )
