"""Words of the fictional bookshop: every title, imprint and place is invented.

A word of a title always points at the same facet, so that a reader of the title (a person or a
small model) can tell what the book is about.
"""

from __future__ import annotations

#: category -> (places for titles, settings, other names of the category)
CATEGORIES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "sea tales": (
        ("Harbour", "Shoal", "Lighthouse", "Tideway", "Quay", "Reef"),
        ("a port that trades in weather", "a ship nobody will insure", "the outer reefs"),
        ("stories of the sea", "voyages and harbours", "maritime fiction"),
    ),
    "court intrigue": (
        ("Palace", "Antechamber", "Throne", "Gallery", "Embassy", "Terrace"),
        ("a palace of listening walls", "a regency in its last winter", "an embassy under guard"),
        ("palace plots", "novels of court and crown", "political intrigue"),
    ),
    "clockwork fantasy": (
        ("Foundry", "Workshop", "Gearhouse", "Tower", "Observatory", "Mill"),
        (
            "a city wound up every morning",
            "a guild of mechanical makers",
            "a foundry of living brass",
        ),
        ("tales of gears and spells", "mechanical fantasy", "fantasy with machines in it"),
    ),
    "ghost stories": (
        ("Attic", "Graveyard", "Manor", "Cellar", "Chapel", "Corridor"),
        ("a manor with one room too many", "a village that buries its mirrors", "an empty chapel"),
        ("hauntings", "supernatural fiction", "tales of restless houses"),
    ),
    "village comedy": (
        ("Bakery", "Parish", "Market", "Orchard", "Inn", "Meadow"),
        ("a parish at war over its fair", "an inn with two landlords", "a valley of gossips"),
        ("comedies of small places", "rural humour", "village farce"),
    ),
    "star voyages": (
        ("Orbit", "Station", "Moon", "Nebula", "Airlock", "Beacon"),
        ("a relay station past the last map", "a fleet grown old in flight", "a moon under lease"),
        ("space fiction", "stories set between stars", "far-future voyages"),
    ),
    "desert adventure": (
        ("Dune", "Caravan", "Oasis", "Canyon", "Well", "Citadel"),
        ("a caravan road without wells", "a citadel half under sand", "the glass canyons"),
        ("desert journeys", "adventures in dry country", "caravan stories"),
    ),
    "detective puzzles": (
        ("Archive", "Courthouse", "Arcade", "Library", "Boulevard", "Hotel"),
        ("a hotel closed for the season", "an archive with a missing shelf", "a town of alibis"),
        ("mysteries", "crime puzzles", "novels of clues and suspects"),
    ),
}

#: theme -> (nouns for titles, ways of naming the theme)
THEMES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "debt": (
        ("Ledger", "Promise", "Bargain", "Coin", "Oath", "Pledge"),
        ("old debts coming due", "promises that must be paid for", "what people owe each other"),
    ),
    "memory": (
        ("Mirror", "Echo", "Portrait", "Keepsake", "Diary", "Photograph"),
        ("memory and what it hides", "half-forgotten lives", "the past returning uninvited"),
    ),
    "exile": (
        ("Stranger", "Border", "Suitcase", "Passport", "Outcast", "Farewell"),
        ("exile and return", "people far from home", "belonging nowhere in particular"),
    ),
    "craft": (
        ("Chisel", "Loom", "Hammer", "Kiln", "Compass", "Needle"),
        ("pride in careful work", "makers and their craft", "the patience of good hands"),
    ),
    "rivalry": (
        ("Duel", "Wager", "Race", "Crown", "Trophy", "Challenge"),
        ("rivals who need each other", "ambition against ambition", "contests that go too far"),
    ),
    "friendship": (
        ("Lantern", "Table", "Bridge", "Bonfire", "Neighbour", "Kettle"),
        ("unlikely friendships", "loyalty between friends", "companions who stay"),
    ),
    "secrets": (
        ("Key", "Cipher", "Curtain", "Letter", "Keyhole", "Mask"),
        ("secrets kept too long", "hidden letters and hidden motives", "the price of concealment"),
    ),
    "survival": (
        ("Storm", "Winter", "Ember", "Raft", "Hunger", "Flood"),
        ("survival against the odds", "endurance in hard country", "staying alive another night"),
    ),
    "inheritance": (
        ("Heir", "Testament", "Orchid", "Heirloom", "Cradle", "Daughter"),
        ("inheritance and family duty", "what parents leave behind", "quarrels over a legacy"),
    ),
    "justice": (
        ("Verdict", "Gallows", "Witness", "Balance", "Judge", "Confession"),
        ("justice and its costs", "guilt that will not settle", "wrongs put slowly right"),
    ),
    "discovery": (
        ("Atlas", "Telescope", "Fossil", "Map", "Threshold", "Signal"),
        ("curiosity and discovery", "first steps into the unknown", "knowledge won at a risk"),
    ),
    "love": (
        ("Rose", "Ribbon", "Waltz", "Ring", "Serenade", "Valentine"),
        ("love found late", "courtship with obstacles", "affection that survives distance"),
    ),
}

#: tone -> (adjectives for titles, words for the tone)
TONES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "wry": (
        ("Crooked", "Borrowed", "Improbable", "Reluctant", "Second-Best"),
        ("dry wit", "a wry, teasing tone", "irony worn lightly"),
    ),
    "bleak": (
        ("Ashen", "Hollow", "Bitter", "Frozen", "Barren"),
        ("a bleak outlook", "little comfort", "an unsparing mood"),
    ),
    "tender": (
        ("Gentle", "Quiet", "Golden", "Beloved", "Patient"),
        ("tenderness", "a warm and gentle mood", "quiet feeling"),
    ),
    "eerie": (
        ("Whispering", "Pale", "Sleepless", "Nameless", "Shadowed"),
        ("an eerie stillness", "slow unease", "a sense of being watched"),
    ),
    "festive": (
        ("Laughing", "Scarlet", "Merry", "Dancing", "Painted"),
        ("high spirits", "a festive, crowded energy", "good humour"),
    ),
    "solemn": (
        ("Silent", "Iron", "Sacred", "Ancient", "Marble"),
        ("a solemn dignity", "gravity and restraint", "a grave, measured voice"),
    ),
    "thrilling": (
        ("Burning", "Falling", "Savage", "Midnight", "Reckless"),
        ("constant danger", "breathless suspense", "a sharp edge of peril"),
    ),
    "dreamy": (
        ("Drifting", "Violet", "Floating", "Glass", "Moonlit"),
        ("a dreamy drift", "soft, strange images", "the logic of dreams"),
    ),
}

PACES: dict[str, tuple[str, ...]] = {
    "slow": ("an unhurried pace", "slow, patient chapters", "a pace that lingers"),
    "even": ("a steady pace", "an even rhythm", "chapters of measured length"),
    "fast": ("a quick pace", "short, urgent chapters", "a plot that never rests"),
}

#: imprint -> (form it is known for, ways of naming the form)
IMPRINTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "Tidewrack Press": ("letters", ("told in letters", "built from correspondence")),
    "Ninefold Books": ("many voices", ("told by several narrators", "passed from voice to voice")),
    "Ember & Quill": ("first person", ("told in the first person", "confided by its narrator")),
    "Low Lamp Editions": ("fragments", ("told in fragments", "pieced together from scraps")),
    "Harrowgate House": ("chronicle", ("told as a chronicle", "recorded year by year")),
    "Saltmarsh & Daughters": ("folk tale", ("told like a folk tale", "shaped as an oral legend")),
    "Paper Heron": ("dialogue", ("carried by dialogue", "told mostly in conversation")),
    "Cobalt Door": ("case file", ("laid out as a case file", "told through reports")),
    "Wicker Moon": ("omniscient", ("told from above", "led by an all-seeing narrator")),
    "Third Bell": ("diary", ("kept as a diary", "told in dated entries")),
}

#: latent taste of a group of readers -> (categories, themes, tones, paces), liked in this order
TASTES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], str]] = {
    "wanderers": (
        ("sea tales", "desert adventure", "star voyages"),
        ("exile", "survival", "discovery"),
        ("thrilling", "solemn", "dreamy"),
        "fast",
    ),
    "plotters": (
        ("court intrigue", "detective puzzles", "ghost stories"),
        ("secrets", "rivalry", "justice"),
        ("wry", "thrilling", "solemn"),
        "even",
    ),
    "hearthside": (
        ("village comedy", "sea tales", "clockwork fantasy"),
        ("friendship", "love", "craft"),
        ("tender", "festive", "wry"),
        "slow",
    ),
    "night readers": (
        ("ghost stories", "detective puzzles", "desert adventure"),
        ("memory", "secrets", "survival"),
        ("eerie", "bleak", "dreamy"),
        "slow",
    ),
    "tinkerers": (
        ("clockwork fantasy", "star voyages", "detective puzzles"),
        ("craft", "discovery", "debt"),
        ("dreamy", "wry", "festive"),
        "even",
    ),
    "dynasts": (
        ("court intrigue", "village comedy", "ghost stories"),
        ("inheritance", "love", "debt"),
        ("solemn", "tender", "bleak"),
        "slow",
    ),
}

#: word of a title -> (facet, value), the reading of a title that the texts rely on
TITLE_WORDS: dict[str, tuple[str, str]] = {
    **{word: ("category", key) for key, entry in CATEGORIES.items() for word in entry[0]},
    **{word: ("theme", key) for key, entry in THEMES.items() for word in entry[0]},
    **{word: ("tone", key) for key, entry in TONES.items() for word in entry[0]},
}
