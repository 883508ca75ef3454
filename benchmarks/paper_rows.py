"""Retraining recipes, each from data to a .nqz file to a row of benchmarks/papers/RESULTS.md.

    NQZ_DATA=path/to/data [NQZ_WORK=folder] python benchmarks/paper_rows.py [ROW ...] [--seeds 0,1,2]

Dense networks, checkpoints and files are kept in NQZ_WORK (else in the system's temporary folder), so that an
interrupted run goes on where it was. Rows that are known are not measured again unless --again is given.
"""

from __future__ import annotations

import argparse

import torch
from harness import machine, read, write
from papers.dense import telling, working_folder
from papers.measuring import measured_row
from papers.recipes import RECIPES
from papers.table import write_table

NAME = "papers"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", choices=[[], *RECIPES], metavar="ROW", help=", ".join(RECIPES))
    parser.add_argument("--seeds", default="0", help="numbers with commas between")
    parser.add_argument("--again", action="store_true", help="measure rows that are known")
    parser.add_argument("--table", action="store_true", help="write the table alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    for name in () if arguments.table else arguments.rows or RECIPES:
        for seed in map(int, arguments.seeds.split(",")):
            known = read(NAME).get("rows", {}).get(name, {}).get("seeds", {})
            if str(seed) in known and not arguments.again:
                continue
            row = measured_row(
                name, RECIPES[name], RECIPES[name].load(), seed=seed, folder=working_folder(), telling=telling
            )
            print(name, row, flush=True)
            results = read(NAME)
            results["machine"] = machine("numpy", "torch", "onnxruntime", "numba")
            results.setdefault("rows", {}).setdefault(name, {}).setdefault("seeds", {})[str(seed)] = row
            write(NAME, results)
    results = read(NAME)
    for name, found in results.get("rows", {}).items():
        found |= {
            "network": RECIPES[name].network,
            "method": RECIPES[name].method,
            "note": RECIPES[name].note,
        }
    write(NAME, results)
    write_table(RECIPES, results.get("rows", {}))


if __name__ == "__main__":
    main()
