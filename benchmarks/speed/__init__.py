"""Speed, as ratios against peers and limits in the same run."""
