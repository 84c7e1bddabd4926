"""Sentence patterns of the knowledge texts, several ways of saying each thing.

A pattern's fields are filled by `texts`. Patterns avoid verbs that would have to agree with
a field, because fields mix singular and plural.
"""

from __future__ import annotations

USER_OPENINGS = (
    "This reader keeps returning to {category}, most happily where there is room for {theme}.",
    "At the heart of this history lies a love of {category}.",
    "The ratings point first to {category} and then, at some distance, to {second}.",
    "Few shelves please this person as much as {category}.",
    "Someone who chooses {title} clearly enjoys {category}.",
    "{alias}: that is where this reader feels at home.",
    "Judging by the list, {category} comes first for this user.",
    "Here is a reader of {category} with an eye for {theme}.",
    "The strongest signal in these {count} books is a preference for {category}.",
    "We see a loyal follower of {category} who also opens {second} now and then.",
    "With {count} rated books, a clear picture emerges: {alias} above all.",
    "What unites the favourites here is {theme}, usually found in {category}.",
)

USER_SENTENCES: dict[str, tuple[str, ...]] = {
    "genre": (
        "In genre, {category} leads, as the score of {rating} for {title} shows.",
        "{title} earned {rating}, a sign of lasting trust in {alias}.",
        "The genre that matters is {category}, with less room for {second}.",
        "Most high marks went to {alias}, with {title} in front.",
        "Among genres, this reader puts {alias} well before {second}.",
        "Titles such as {title} explain the pull of {category}.",
        "Besides {category} there is a side interest in {second}.",
        "A {rating} for {title} confirms the leaning towards {category}.",
    ),
    "theme": (
        "As for themes, one meets {theme} again and again.",
        "Stories about {theme} tend to be rated well.",
        "The preferred theme seems to be {theme}, which {title} has at its core.",
        "A thread of {theme} runs through the better-rated books.",
        "Plots built on {theme} hold this reader's attention.",
        "Thematically the list circles around {theme}.",
        "There is a lasting curiosity about {theme}.",
        "Books that take {theme} seriously are finished and praised.",
    ),
    "tone": (
        "In tone, the reader looks for {tone}.",
        "The score rises with {tone}, whatever the plot.",
        "The mood of choice includes {tone}.",
        "A taste for {tone} is hard to miss.",
        "Style matters too: this reader puts {tone} above spectacle.",
        "The favourites share {tone}.",
        "Where a book offers {tone}, the marks go up.",
        "Emotionally, the list favours {tone}.",
    ),
    "dislike": (
        "By contrast, {least} received only {low}, so not every experiment succeeds.",
        "{least} fell flat with a {low}.",
        "The low mark for {least} suggests limited patience with {far}.",
        "Less welcome: {least}, rated {low}.",
        "Something in {least} did not work, as the {low} makes plain.",
        "Caution is in order with {far}, given the {low} for {least}.",
    ),
    "breadth": (
        "The choices stay open to {second}, so surprise is allowed.",
        "Now and then the list turns to {second} for variety.",
        "{first}, the oldest entry, already shows the pattern.",
        "An early choice, {first}, points in the same direction.",
        "Nothing on the list was badly received, which suggests a careful chooser.",
        "An occasional detour into {second} shows some range.",
    ),
}

USER_CLOSINGS = (
    "New {category} with {tone} would be a safe suggestion.",
    "A good next step: something about {theme}, told with {tone}.",
    "Recommend {alias} first, and keep {second} for variety.",
    "Anything that joins {theme} to {category} should go down well.",
    "Expect interest in books close to {title}.",
    "In short, offer {category}, and do not hide {tone}.",
    "The next favourite will probably resemble {title}.",
    "Suggestions should favour {theme} over sheer novelty.",
    "For the coming season, the best bet is {alias}.",
    "Overall: {category}, {theme}, and a welcome dose of {tone}.",
)

#: Orders in which the middle of a user's text may run; "contrast" is a dislike if there was one.
USER_PLANS = (
    ("genre", "theme", "tone"),
    ("theme", "tone", "contrast"),
    ("genre", "tone", "theme", "contrast"),
    ("theme", "genre", "contrast"),
    ("tone", "theme", "genre"),
    ("contrast", "theme", "tone"),
    ("genre", "contrast", "theme", "tone"),
    ("tone", "genre", "contrast"),
)

ITEM_OPENINGS = (
    "{title} belongs to {category} and comes from {brand}.",
    "Published by {brand}, {title} takes its readers to {setting}.",
    "{title} is set in {setting}.",
    "In {title}, {brand} stays true to {category}.",
    "Lovers of {category} will recognise the ground of {title} at once.",
    "{setting}: this is where {title} begins.",
    "With {title}, {brand} adds another book to its {category}.",
    "At its centre {title} is a book about {theme}.",
    "{title} joins {category} with {theme}.",
    "A reader who opens {title} steps into {setting}.",
)

ITEM_SENTENCES: dict[str, tuple[str, ...]] = {
    "setting": (
        "The scene is {setting}, drawn in close detail.",
        "Its world, {setting}, matters as much as any character.",
        "Everything takes place in {setting}.",
        "The story is framed by {setting}.",
        "The choice of {setting} ties it firmly to {category}.",
        "Few books make so much of {setting}.",
    ),
    "theme": (
        "Its theme is {theme}.",
        "Beneath the plot one finds {theme}.",
        "The story asks about {theme} and refuses easy answers.",
        "What drives the characters is {theme}.",
        "Again and again the chapters return to {theme}.",
        "The author's real subject is {theme}.",
        "Readers will find much about {theme} here.",
    ),
    "tone": (
        "The prose is marked by {tone}.",
        "One remembers above all {tone}.",
        "It is written with {tone}.",
        "Throughout, the scenes carry {tone}.",
        "The mood rests on {tone}.",
        "Expect {tone} from the first page.",
        "It stands apart from other {category} through {tone}.",
    ),
    "style": (
        "It is {form}, with {pace}.",
        "{form}, it keeps to {pace}.",
        "As is common at {brand}, it is {form}.",
        "The book is {form}, which goes well with {pace}.",
        "Stylistically it is {form}, which leads to {pace}.",
        "Being {form}, it can afford {pace}.",
    ),
    "pace": (
        "It moves with {pace}.",
        "The reading experience has {pace}.",
        "Its structure allows for {pace}.",
        "The author clearly intended {pace}.",
        "There is a clear preference for {pace}.",
    ),
}

ITEM_CLOSINGS = (
    "It should please readers who look for {theme}.",
    "Best suited to those who enjoy {tone} in {category}.",
    "Anyone fond of {alias} can pick it up without worry.",
    "It will disappoint only those who cannot bear {pace}.",
    "Give it to a friend who values {tone}.",
    "The natural audience reads {alias} for {theme}.",
    "A fine choice for evenings that call for {theme} rather than action.",
    "Newcomers to {category} may well start here.",
    "Those who liked other books of {brand} will be content.",
)

ITEM_PLANS = (
    ("setting", "theme", "tone", "style"),
    ("theme", "style", "tone"),
    ("tone", "theme", "style"),
    ("style", "setting", "theme"),
    ("theme", "tone", "pace"),
    ("setting", "style", "tone", "theme"),
    ("style", "theme", "tone"),
    ("tone", "pace", "theme", "setting"),
)
