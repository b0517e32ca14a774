"""Full-sort evaluation: ranking, metrics, and RecBole's evaluator around them."""
