"""Data in, data out: corpora, contexts, and data sets on the Hub.

On top stands what one loads or runs: `mner` (`MnerDataset`, a corpus as a data set), `audit`, `build_visual_context`,
`build_word_neighbours` and `push_dataset`. The folders hold what these are made of:

- `corpus`: reading the files of a corpus: columns, settings and known files, images, contexts, training examples;
- `contexts`: from images to contexts: where images come from, the store, the preview, the report of a build;
- `hub`: a corpus and its contexts as a data set on the Hub: commit, card, checksums;
- `audits`: what the audit looks for, in texts, tags and images;
- `sample_posts`: the embedded corpus, and the script that draws it.
"""
