//! Names of the tiny autoencoder: taehv numbers its layers, and so do we. Source: madebyollin/taehv `taehv.py`.

use super::Meaning;

/// What a name stands for. Published files have exactly our names.
pub(super) fn meaning(name: &str) -> Meaning {
    if name.starts_with("encoder.") || name.starts_with("decoder.") {
        Meaning::Ours(name.into())
    } else {
        Meaning::Unknown
    }
}

/// taehv's `patch_tgrow_layers`: where a published layer grows a frame to more frames than this model wants, the last
/// rows are those of the last frame, and the rows before them are dropped. Gives the number of dropped values.
pub(super) fn rows_to_skip(ours: &str, stored: &[usize], wanted: &[usize]) -> Option<usize> {
    let grows = ["decoder.7.conv.weight", "decoder.13.conv.weight", "decoder.19.conv.weight"].contains(&ours);
    let ([rows, stored @ ..], [kept, wanted @ ..]) = (stored, wanted) else { return None };
    let fits = grows && rows > kept && rows.is_multiple_of(*kept) && stored == wanted;
    let row: usize = wanted.iter().product();
    fits.then(|| (rows - kept) * row)
}
