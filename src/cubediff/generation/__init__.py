"""Generation with a trained pipeline: jobs, their execution, and the files that they write."""
