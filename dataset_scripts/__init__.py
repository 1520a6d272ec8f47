"""Corpora, visual contexts, labelled posts, and data sets on the Hub.

The top-level modules are the ones to import or run: `mner` (`MnerDataset`, a corpus as a data set), `audit`,
`build_visual_context`, `build_word_neighbours`, `label` (`PostLabeller`) and `push_dataset`. The subpackages hold
their parts:

- `corpus`: reading the files of a corpus: columns, settings and known files, images, contexts, training examples;
- `contexts`: from images to contexts: image sources, the store, the preview, the build report;
- `labelling`: rows read from files, labelled in batches, written in shards, by one process or many;
- `hub`: a corpus and its contexts as a data set on the Hub: commit, card, checksums;
- `audits`: what the audit looks for, in texts, tags and images;
- `sample_posts`: the embedded corpus, and the script that draws it.
"""
