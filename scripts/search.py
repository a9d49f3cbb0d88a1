"""Search a store with a question typed by hand: python scripts/search.py NAME "free text" [--k 5] [--json].

Takes the text as it is, whatever quotes, brackets or umlauts it holds; retrieval/run.py action=search does the same
for programs. Settings beyond k come from conf/retrieval.yaml: repeat --set search.dense_weight=0.7 to change one.
"""

from core.entry import begin_program

begin_program()

import argparse

from hydra import compose, initialize_config_dir

from core.config import CONF_DIR, load_config, run_command
from core.logs import configure_logging
from core.next_command import quote_value
from retrieval.config import Action, Output, RetrievalConfig
from retrieval.run import search_and_show


def main() -> None:
    """Read the command line and search."""
    arguments = parse_arguments()
    configure_logging(level="WARNING")
    overrides = [*arguments.set, *([f"paths.data_dir={quote_value(arguments.data_dir)}"] if arguments.data_dir else [])]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = load_config(compose("retrieval", overrides=overrides), RetrievalConfig)
    config.action = Action.search
    config.k = arguments.k
    config.output = Output.json if arguments.json else Output.table
    search_and_show(config, arguments.store, " ".join(arguments.text))


def parse_arguments() -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description="Search a store.")
    parser.add_argument("store", help="name of the store")
    parser.add_argument("text", nargs="+", help="the question; quotes around it are optional")
    parser.add_argument("--k", type=int, help="how many hits (default: what the store was tuned to, else 5)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--data-dir", help="the data directory (default: LOAM_DATA_DIR, else data)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting, e.g. search.dense_weight=0.7"
    )
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
