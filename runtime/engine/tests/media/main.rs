//! Reading of media files. `data/make_fixtures.py` writes the files and what Pillow and libsndfile
//! read from them.

mod fixtures;
mod hostile;
mod images;
mod kinds;
mod mp4;
mod sounds;
mod sources;
mod truncated;
mod videos;
