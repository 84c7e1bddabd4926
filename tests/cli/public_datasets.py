"""Small imitations of the files of public data sets, laid out as these are, with invented rows.

All of them tell the same of the same users and items, so that what is made of one of them is known.
Rows that have times come latest first.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

USERS, ITEMS = 6, 8
_KINDS = ("Drama", "Comedy", "Crime", "Western")
_FLAGS = (
    "unknown", "Action", "Adventure", "Animation", "Children", "Comedy", "Crime", "Documentary",
    "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi",
    "Thriller", "War", "Western",
)  # fmt: skip

#: User, item, rating from 1 to 5, and second of each interaction, in the order of time.
TOOK = [
    (user, (user * 3 + step * 2) % ITEMS + 1, (user + step * 2) % 5 + 1,
     1_300_000_000 + step * 86_400 + user)
    for step in range(7) for user in range(1, USERS + 1) if step < user + 1
]  # fmt: skip
LATEST = TOOK[::-1]


def title(item: int) -> str:
    return f'"Café" {item}, The' if item % 2 else f"Harbour {item}"


def kinds(item: int) -> list[str]:
    return [_KINDS[item % 4], _KINDS[(item + 1) % 4]]


def asin(item: int) -> str:
    """Some with zeros in front, as ISBNs have them."""
    return f"00061{item:05d}" if item % 3 == 0 else f"B00{item:07d}"


def at(second: int, form: str = "%Y-%m-%d %H:%M:%S", hours: int = 0) -> str:
    return datetime.fromtimestamp(second, timezone(timedelta(hours=hours))).strftime(form)


def lines(separator: str, rows: Iterable[Iterable[object]]) -> str:
    return "".join(separator.join(map(str, row)) + "\n" for row in rows)


def quoted(separator: str, rows: Iterable[Iterable[object]]) -> str:
    """As Book-Crossing quotes, with backslashes."""
    return lines(
        separator,
        ([f'"{str(c).replace(chr(34), chr(92) + chr(34))}"' for c in row] for row in rows),
    )


def comma(rows: Iterable[Iterable[object]]) -> str:
    cells = ([f'"{str(c).replace(chr(34), chr(34) * 2)}"' if set('",') & set(str(c)) else c
              for c in row] for row in rows)  # fmt: skip
    return lines(",", cells)


def objects(rows: Iterable[Mapping[str, Any]], spell: Callable[[Any], str] = json.dumps) -> str:
    return "".join(spell(row) + "\n" for row in rows)


def python_2(row: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"u{k!r}: {'u' * isinstance(v, str)}{v!r}" for k, v in row.items()) + "}"


def written(name: str, content: str, encoding: str = "utf-8") -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode(encoding)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


ALL = range(1, ITEMS + 1)


def movielens_100k() -> None:
    written("u.data", lines("\t", LATEST))
    flags = {i: [int(flag in kinds(i)) for flag in _FLAGS] for i in ALL}
    films = ([i, title(i), "01-Jan-1995", "", "http://example.org", *flags[i]] for i in ALL)
    written("u.item", lines("|", films), "latin-1")


def movielens_1m() -> None:
    written("ratings.dat", lines("::", LATEST))
    films = ([i, title(i), "|".join(kinds(i))] for i in ALL)
    written("movies.dat", lines("::", films), "latin-1")


def movielens() -> None:
    written("ratings.csv", comma([["userId", "movieId", "rating", "timestamp"], *LATEST]))
    films = [[i, title(i), "|".join(kinds(i))] for i in ALL]
    written("movies.csv", comma([["movieId", "title", "genres"], *films]))


def _amazon_reviews() -> list[dict[str, Any]]:
    return [
        {"reviewerID": f"A{u}", "asin": asin(i), "helpful": [0, 1], "reviewText": "Fine, 'so'.",
         "overall": float(r), "unixReviewTime": t, "reviewTime": at(t, "%m %d, %Y")}
        for u, i, r, t in LATEST
    ]  # fmt: skip


def amazon_2014() -> None:
    written("reviews_Beauty_5.json.gz", objects(_amazon_reviews()))
    things = [{"asin": asin(i), "categories": [["Beauty", *kinds(i)]], "title": title(i),
               "salesRank": {"Beauty": i}, "related": {}} for i in ALL]  # fmt: skip
    written("meta_Beauty.json.gz", objects(things, repr))


def amazon_ratings() -> None:
    rows = [[f"A{u}", asin(i), float(r), t] for u, i, r, t in LATEST]
    written("ratings_Beauty.csv", lines(",", rows))


def amazon_2018() -> None:
    written("Luxury_Beauty.json.gz", objects(_amazon_reviews()))
    things = [{"category": kinds(i), "description": ["Nice."], "title": title(i), "brand": "B",
               "also_buy": [], "asin": asin(i), "details": {}} for i in ALL]  # fmt: skip
    written("meta_Luxury_Beauty.json.gz", objects(things))


def amazon_2023() -> None:
    rows = [{"rating": float(r), "title": "Good", "text": "x", "images": [], "asin": f"V{i}",
             "parent_asin": asin(i), "user_id": f"A{u}", "timestamp": t * 1000 + 7,
             "verified_purchase": True} for u, i, r, t in LATEST]  # fmt: skip
    written("All_Beauty.jsonl.gz", objects(rows))
    things = [{"main_category": "All Beauty", "title": title(i), "features": [], "price": None,
               "categories": kinds(i), "details": {"Color": "Red"} if i % 2 else {}, "store": "S",
               "parent_asin": asin(i), "bought_together": None} for i in ALL]  # fmt: skip
    written("meta_All_Beauty.jsonl.gz", objects(things))


def yelp() -> None:
    rows = [{"review_id": f"r{t}", "user_id": f"A{u}", "business_id": asin(i), "stars": float(r),
             "useful": 0, "text": "x\ny", "date": at(t)} for u, i, r, t in LATEST]  # fmt: skip
    written("yelp_academic_dataset_review.json", objects(rows))
    places = [{"business_id": asin(i), "name": title(i), "city": "X", "stars": 4.5,
               "attributes": {"WiFi": "u'free'"} if i % 2 else None, "hours": None,
               "categories": ", ".join(kinds(i))} for i in ALL]  # fmt: skip
    written("yelp_academic_dataset_business.json", objects(places))


def goodreads() -> None:
    when = "%a %b %d %H:%M:%S %z %Y"
    rows = [{"user_id": f"A{u}", "book_id": str(i), "review_id": f"r{t}", "is_read": True,
             "rating": r, "date_added": at(t, when, hours=-8), "date_updated": at(t, when),
             "read_at": "", "started_at": ""} for u, i, r, t in LATEST]  # fmt: skip
    rows.append({**rows[0], "rating": 0})
    written("goodreads_interactions_poetry.json.gz", objects(rows))
    books = [{"isbn": "", "series": [], "popular_shelves": [{"count": "3", "name": kinds(i)[0]}],
              "asin": "", "average_rating": "3.8", "publication_year": "2005", "book_id": str(i),
              "authors": [{"author_id": "1"}], "title": title(i)} for i in ALL]  # fmt: skip
    written("goodreads_books_poetry.json.gz", objects(books))


def steam() -> None:
    rows = [{"username": f"A{u}", "hours": 2.5, "products": 9, "product_id": str(i),
             "page_order": 0, "date": at(t, "%Y-%m-%d"), "text": 'a "b"'}
            for u, i, _, t in LATEST]  # fmt: skip
    rows[3]["user_id"] = "7656"
    written("steam_reviews.json.gz", objects(rows, python_2))
    games = [{"genres": kinds(i), "app_name": title(i), "title": title(i), "price": 4.99,
              "early_access": False, "id": str(i)} for i in ALL]  # fmt: skip
    written("steam_games.json.gz", objects(games, python_2))


def taobao() -> None:
    written("UserBehavior.csv", lines(",", ([u, i, 9, "pv", t] for u, i, _, t in LATEST)))


def kuairec() -> None:
    head = ["user_id", "video_id", "play_duration", "time", "date", "timestamp", "watch_ratio"]
    rows = [[u, i, 9, at(t), at(t, "%Y%m%d"), f"{t}.25", r] for u, i, r, t in LATEST]
    written("big_matrix.csv", comma([head, *rows]))


def kuairand() -> None:
    head = ["user_id", "video_id", "date", "hourmin", "time_ms", "is_click", "is_like"]
    rows = [[u, i, at(t, "%Y%m%d"), 900, t * 1000, 1, 0] for u, i, _, t in LATEST]
    written("log_standard_4_08_to_4_21_pure.csv", comma([head, *rows]))


def tenrec() -> None:
    head = ["user_id", "item_id", "click", "follow", "like", "share", "gender", "hist_1"]
    shown = [[u, i, c, 0, 0, 0, 1, 0] for u, i, _, _ in TOOK for c in (1, 0)]
    written("ctr_data_1M.csv", comma([head, *shown]))


def hm() -> None:
    rows = [[at(t, "%Y-%m-%d"), f"A{u}", f"0{i}00001", "0.05", 2] for u, i, _, t in LATEST]
    head = ["t_dat", "customer_id", "article_id", "price", "sales_channel_id"]
    written("transactions_train.csv", comma([head, *rows]))
    head = ["article_id", "product_code", "prod_name", "product_type_name", "detail_desc"]
    rows = [[f"0{i}00001", i, title(i), kinds(i)[0], "Soft, nice"] for i in ALL]
    written("articles.csv", comma([head, *rows]))


def lastfm() -> None:
    when = "%Y-%m-%dT%H:%M:%SZ"
    rows = ([f"A{u}", at(t, when), "f1b1", "Band", f"t{i}", title(i)] for u, i, _, t in LATEST)
    written("userid-timestamp-artid-artname-traid-traname.tsv", lines("\t", rows))


def book_crossing() -> None:
    rows = [[u, asin(i), r] for u, i, r, _ in TOOK]
    unrated = [[1, asin(2), 0]]
    head = ["User-ID", "ISBN", "Book-Rating"]
    written("BX-Book-Ratings.csv", quoted(";", [head, *rows, *unrated]), "latin-1")
    head = ["ISBN", "Book-Title", "Book-Author", "Year-Of-Publication", "Publisher"]
    books = [[asin(i), title(i), "X; Y", 1999, "P"] for i in ALL]
    written("BX-Books.csv", quoted(";", [head, *books]), "latin-1")


def foursquare() -> None:
    when = "%a %b %d %H:%M:%S +0000 %Y"
    rows = ([u, f"v{i}", "4b", kinds(i)[0], 40.7, -74.0, -240, at(t, when)]
            for u, i, _, t in LATEST)  # fmt: skip
    written("dataset_TSMC2014_NYC.txt", lines("\t", rows), "latin-1")


def netflix() -> None:
    parts = (f"{i}:\n" + lines(",", ([u, r, at(t, "%Y-%m-%d")]
             for u, j, r, t in LATEST if j == i)) for i in ALL)  # fmt: skip
    written("combined_data_1.txt", "".join(parts))


def mind() -> None:
    news = ([f"N{i}", kinds(i)[0], "x", title(i), "", "https://example.org", "[]", '[{"a": "b"}]']
            for i in ALL)  # fmt: skip
    written("news.tsv", lines("\t", news))
    when = "%m/%d/%Y %I:%M:%S %p"
    rows = ([n, f"A{u}", at(t, when), "N1 N2", f"N{i}-1 N{i % ITEMS + 1}-0"]
            for n, (u, i, _, t) in enumerate(LATEST))  # fmt: skip
    written("behaviors.tsv", lines("\t", rows))


def recbole() -> None:
    head = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
    written("ml-100k.inter", lines("\t", [head, *LATEST]))
    head = ["item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq"]
    films = [[i, title(i), 1995, " ".join(kinds(i))] for i in ALL]
    written("ml-100k.item", lines("\t", [head, *films]))


def spark() -> None:
    moments = [datetime.fromtimestamp(t, UTC) for _, _, _, t in LATEST]
    table = pa.table({
        "user_id": [f"A{u}" for u, _, _, _ in LATEST], "item_id": [i for _, i, _, _ in LATEST],
        "rating": [float(r) for _, _, r, _ in LATEST], "timestamp": moments,
    })  # fmt: skip
    for day in ("2011-03-13", "2011-03-14"):
        folder = Path("events") / f"day={day}"
        folder.mkdir(parents=True)
        half = len(LATEST) // 2
        part = table.slice(0, half) if day.endswith("4") else table.slice(half)
        name = folder / "part-00000-3f2a.c000.snappy.parquet"
        pq.write_table(part, name, use_deprecated_int96_timestamps=True, compression="snappy")
    Path("events/_SUCCESS").touch()


def hugging_face() -> None:
    names = ("user_id", "item_id", "rating", "timestamp")
    table = pa.table(dict(zip(names, map(list, zip(*LATEST, strict=True)), strict=True)))
    for part in ("train", "test"):
        folder = Path("saved") / part
        folder.mkdir(parents=True)
        with pa.ipc.new_stream(folder / "data-00000-of-00001.arrow", table.schema) as stream:
            stream.write_table(table, max_chunksize=10)
        for name in ("dataset_info.json", "state.json"):
            (folder / name).write_text("{}")
    Path("saved/dataset_dict.json").write_text('{"splits": ["train", "test"]}')


def bigquery() -> None:
    rows = [{"user_id": str(u), "item_id": str(i), "rating": r, "timestamp": at(t) + " UTC"}
            for u, i, r, t in LATEST]  # fmt: skip
    for part in range(2):
        written(f"export/00000000000{part}.json", objects(rows[part::2]))
