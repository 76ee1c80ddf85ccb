//! The Porter stemmer as NLTK has it (`nltk.stem.porter.PorterStemmer`, mode `NLTK_EXTENSIONS`), which differs from
//! the published algorithm (Porter, 1980, <https://tartarus.org/martin/PorterStemmer/>) in a few places, each marked
//! "NLTK" below.
//!
//! Words are lower-case ASCII letters and digits; a digit counts as a consonant.

/// Replaces `word` by its stem.
pub(crate) fn stem(word: &mut Vec<u8>) {
    if let Some(irregular) = irregular(word) {
        word.clear();
        word.extend_from_slice(irregular);
        return;
    }
    if word.len() <= 2 {
        return;
    }
    plurals(word);
    past_and_gerund(word);
    final_y(word);
    double_suffixes(word);
    replace_first(word, STEP_3, 0);
    single_suffixes(word);
    final_e(word);
    final_double_l(word);
}

/// NLTK: forms that the rules get wrong.
fn irregular(word: &[u8]) -> Option<&'static [u8]> {
    Some(match word {
        b"sky" | b"skies" => b"sky",
        b"dying" => b"die",
        b"lying" => b"lie",
        b"tying" => b"tie",
        b"news" => b"news",
        b"inning" | b"innings" => b"inning",
        b"outing" | b"outings" => b"outing",
        b"canning" | b"cannings" => b"canning",
        b"howe" => b"howe",
        b"proceed" => b"proceed",
        b"exceed" => b"exceed",
        b"succeed" => b"succeed",
        _ => return None,
    })
}

/// Whether each letter is a consonant, left to right: a `y` is one at the start and after a vowel.
fn consonants(word: &[u8]) -> impl Iterator<Item = bool> + '_ {
    let mut previous = false;
    word.iter().map(move |letter| {
        previous = match letter {
            b'a' | b'e' | b'i' | b'o' | b'u' => false,
            b'y' => !previous,
            _ => true,
        };
        previous
    })
}

fn ends_in_consonant(word: &[u8]) -> bool {
    consonants(word).last().unwrap_or(false)
}

fn has_vowel(word: &[u8]) -> bool {
    consonants(word).any(|consonant| !consonant)
}

/// Porter's `m`: how often a vowel is followed by a consonant.
fn measure(word: &[u8]) -> usize {
    let mut after_vowel = false;
    let mut count = 0;
    for consonant in consonants(word) {
        count += usize::from(after_vowel && consonant);
        after_vowel = !consonant;
    }
    count
}

/// Porter's `*d`.
fn ends_in_double_consonant(word: &[u8]) -> bool {
    matches!(word, [.., a, b] if a == b) && ends_in_consonant(word)
}

/// Porter's `*o`: consonant, vowel, consonant other than `w`, `x`, `y`. NLTK: a word of just a vowel and a consonant
/// counts as well, whichever the consonant.
fn ends_in_short_syllable(word: &[u8]) -> bool {
    let (mut a, mut b, mut c) = (true, true, false);
    for consonant in consonants(word) {
        (a, b, c) = (b, c, consonant);
    }
    match word {
        [_, _] => !b && c,
        [.., _, _, last] => a && !b && c && !matches!(last, b'w' | b'x' | b'y'),
        _ => false,
    }
}

/// The part of `word` before `suffix`.
fn before<'a>(word: &'a [u8], suffix: &str) -> Option<&'a [u8]> {
    word.strip_suffix(suffix.as_bytes())
}

/// Applies the first rule whose suffix fits, if the rest of the word has a measure above `above`; later rules are not
/// tried in either case.
fn replace_first(word: &mut Vec<u8>, rules: &[(&str, &str)], above: usize) {
    for (suffix, replacement) in rules {
        if let Some(stem) = before(word, suffix) {
            if measure(stem) > above {
                word.truncate(stem.len());
                word.extend_from_slice(replacement.as_bytes());
            }
            return;
        }
    }
}

/// Step 1a.
fn plurals(word: &mut Vec<u8>) {
    let cut = if word.ends_with(b"ies") {
        // NLTK: "dies" -> "die", but "flies" -> "fli".
        if word.len() == 4 { 1 } else { 2 }
    } else if word.ends_with(b"sses") {
        2
    } else if word.ends_with(b"s") && !word.ends_with(b"ss") {
        1
    } else {
        0
    };
    word.truncate(word.len() - cut);
}

/// Step 1b.
fn past_and_gerund(word: &mut Vec<u8>) {
    if word.ends_with(b"ied") {
        // NLTK: "died" -> "die", but "spied" -> "spi".
        word.truncate(word.len() - if word.len() == 4 { 1 } else { 2 });
        return;
    }
    if let Some(stem) = before(word, "eed") {
        if measure(stem) > 0 {
            word.truncate(word.len() - 1);
        }
        return;
    }
    let Some(stem) = before(word, "ed").or_else(|| before(word, "ing")).filter(|stem| has_vowel(stem)) else { return };
    word.truncate(stem.len());

    // What is left may need its final letters mended: hop(p)ing, fil(e)ing, conflat(e)ed.
    let mends_with_e = ["at", "bl", "iz"].iter().any(|end| word.ends_with(end.as_bytes()));
    if mends_with_e {
        word.push(b'e');
    } else if ends_in_double_consonant(word) {
        if !matches!(word.last(), Some(b'l' | b's' | b'z')) {
            word.pop();
        }
    } else if measure(word) == 1 && ends_in_short_syllable(word) {
        word.push(b'e');
    }
}

/// Step 1c. NLTK: only after a consonant that is not the first letter, so that "enjoy" and "by" stay.
fn final_y(word: &mut [u8]) {
    if let [stem @ .., last @ b'y'] = word
        && stem.len() > 1
        && ends_in_consonant(stem)
    {
        *last = b'i';
    }
}

/// Step 2. NLTK has "bli" for the published "abli", and adds "fulli" and "logi".
fn double_suffixes(word: &mut Vec<u8>) {
    // NLTK: "alli" comes first, and what it leaves goes through the step again.
    while before(word, "alli").is_some_and(|stem| measure(stem) > 0) {
        word.truncate(word.len() - 2);
    }
    if word.ends_with(b"logi") {
        // The "l" counts with the stem, so that "geologi" is long enough.
        if measure(&word[..word.len() - 3]) > 0 {
            word.pop();
        }
        return;
    }
    replace_first(word, STEP_2, 0);
}

const STEP_2: &[(&str, &str)] = &[
    ("ational", "ate"),
    ("tional", "tion"),
    ("enci", "ence"),
    ("anci", "ance"),
    ("izer", "ize"),
    ("bli", "ble"),
    ("entli", "ent"),
    ("eli", "e"),
    ("ousli", "ous"),
    ("ization", "ize"),
    ("ation", "ate"),
    ("ator", "ate"),
    ("alism", "al"),
    ("iveness", "ive"),
    ("fulness", "ful"),
    ("ousness", "ous"),
    ("aliti", "al"),
    ("iviti", "ive"),
    ("biliti", "ble"),
    ("fulli", "ful"),
];

const STEP_3: &[(&str, &str)] =
    &[("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""), ("ness", "")];

const STEP_4: &[(&str, &str)] = &[
    ("al", ""),
    ("ance", ""),
    ("ence", ""),
    ("er", ""),
    ("ic", ""),
    ("able", ""),
    ("ible", ""),
    ("ant", ""),
    ("ement", ""),
    ("ment", ""),
    ("ent", ""),
    ("ou", ""),
    ("ism", ""),
    ("ate", ""),
    ("iti", ""),
    ("ous", ""),
    ("ive", ""),
    ("ize", ""),
];

/// Step 4.
fn single_suffixes(word: &mut Vec<u8>) {
    if let Some(stem) = before(word, "ion") {
        if measure(stem) > 1 && matches!(stem.last(), Some(b's' | b't')) {
            word.truncate(word.len() - 3);
        }
        return;
    }
    replace_first(word, STEP_4, 1);
}

/// Step 5a.
fn final_e(word: &mut Vec<u8>) {
    if let Some(stem) = before(word, "e")
        && (measure(stem) > 1 || (measure(stem) == 1 && !ends_in_short_syllable(stem)))
    {
        word.pop();
    }
}

/// Step 5b.
fn final_double_l(word: &mut Vec<u8>) {
    if word.ends_with(b"ll") && measure(&word[..word.len() - 1]) > 1 {
        word.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stemmed(word: &str) -> String {
        let mut bytes = word.as_bytes().to_vec();
        stem(&mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn examples_of_the_paper_and_of_nltk() {
        let pairs = "caresses caress|ponies poni|dies die|flies fli|cats cat|agreed agre|feed feed|plastered plaster|\
                     bled bled|motoring motor|sing sing|conflated conflat|hopping hop|falling fall|hissing hiss|\
                     failing fail|filing file|happy happi|enjoy enjoy|relational relat|conditional condit|\
                     vietnamization vietnam|operator oper|sensibility sensibl|triplicate triplic|hopefulness hope|\
                     geology geolog|adoption adopt|replacement replac|controlling control|rolling roll|rate rate|\
                     dying die|skies sky|innings inning|exceed exceed|spied spi|died die";
        for pair in pairs.split('|') {
            let (word, expected) = pair.split_once(' ').unwrap();
            assert_eq!(stemmed(word), expected, "stem of {word}");
        }
    }

    #[test]
    fn a_y_changes_with_its_neighbours() {
        assert_eq!(consonants(b"yyyay").collect::<Vec<_>>(), [true, false, true, false, true]);
        assert_eq!((measure(b"tr"), measure(b"trouble"), measure(b"oaten")), (0, 1, 2));
    }
}
