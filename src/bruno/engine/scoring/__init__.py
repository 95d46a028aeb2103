"""What an edit costs and gains: raw counts of answers that show the behaviour, KL divergence, intervals."""
