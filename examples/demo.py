"""Train OneBP on ml-100k, which RecBole includes, and show its recommendations for three users.

python examples/demo.py
"""

from __future__ import annotations

from recbole.utils.case_study import full_sort_topk

import recbole_onebp
from recbole_onebp.util import logs

EPOCHS = 30
USERS = ["196", "22", "405"]


def main() -> None:
    run = recbole_onebp.build(
        "OneBP",
        "ml-100k",
        config_dict={
            "epochs": EPOCHS,
            "load_col": {"inter": ["user_id", "item_id"], "item": ["item_id", "movie_title"]},
            "metrics": ["Recall", "NDCG"],
            "topk": [10, 20],
            "valid_metric": "NDCG@10",
            "show_progress": False,
        },
    )
    logs.start(run.folder.log)
    result = run.fit()

    dataset = run.dataset
    users = dataset.token2id("user_id", USERS)
    _, top_items = full_sort_topk(users, run.model, run.test_data, k=10)
    for user, items in zip(USERS, top_items, strict=True):
        print(f"\nuser {user}")
        for place, words in enumerate(dataset.item_feat["movie_title"][items], start=1):
            title = " ".join(dataset.id2token("movie_title", words[words > 0].numpy()))
            print(f"  {place:>2}. {title}")

    print(f"\ntest metrics of epoch {result.best_epoch}, the best on validation")
    for name, value in result.test.items():
        print(f"  {name:<10} {value:.4f}")
    print(f"all files of this run: {run.folder.path}")


if __name__ == "__main__":
    main()
