"""Write invented ratings in MovieLens' format, whose own files may not be passed on.

    python make_data.py FOLDER [--users 150] [--movies 120]

The files are `ratings.csv` and `movies.csv`. Every viewer likes two genres, and some movies are
better than others; what is rated, and how, follows from that, with some noise.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

GENRES = ["Adventure", "Comedy", "Crime", "Drama", "Horror", "Musical", "Romance", "Sci-Fi"]
FIRST = ["Quiet", "Crooked", "Gentle", "Last", "Silver", "Hidden", "Second", "Restless", "Paper",
         "Distant"]  # fmt: skip
SECOND = ["Harbour", "Serenade", "Mirror", "Orchard", "Signal", "Carnival", "Ledger", "Winter",
          "Lighthouse", "Parade", "Compass", "Garden"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--users", type=int, default=150)
    parser.add_argument("--movies", type=int, default=120)
    options = parser.parse_args()
    write(options.folder, options.users, options.movies)


def write(folder: Path, users: int, movies: int) -> None:
    """Write the two files, the same ones every time."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    titles = [f"The {first} {second}" for first in FIRST for second in SECOND][:movies]
    random.shuffle(titles)
    genres = [random.choice(len(GENRES), 2, replace=False) for _ in titles]
    quality = random.normal(0, 0.8, len(titles))

    with (folder / "movies.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["movieId", "title", "genres"])
        for number, (title, two) in enumerate(zip(titles, genres, strict=True), 1):
            year = random.integers(1950, 2020)
            table.writerow([number, f"{title} ({year})", "|".join(GENRES[g] for g in sorted(two))])

    with (folder / "ratings.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["userId", "movieId", "rating", "timestamp"])
        for user in range(1, users + 1):
            liked = random.choice(len(GENRES), 2, replace=False)
            match = np.array([len(np.intersect1d(two, liked)) for two in genres])
            chance = 1.0 + 4 * match
            seen = random.choice(len(titles), 24, replace=False, p=chance / chance.sum())
            start = int(random.integers(1_000_000_000, 1_500_000_000))
            for place, movie in enumerate(seen):
                liking = 2.6 + match[movie] + quality[movie] + random.normal(0, 0.5)
                rating = round(2 * float(np.clip(liking, 0.5, 5))) / 2
                table.writerow([user, movie + 1, rating, start + 3600 * place])


if __name__ == "__main__":
    main()
