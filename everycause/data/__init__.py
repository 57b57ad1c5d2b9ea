"""Images and labels: data sets and their readers, corruptions, shifted test sets, batches."""
