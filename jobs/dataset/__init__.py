"""What a job makes: committed shards, figures, report, card, and looking at them from outside."""
