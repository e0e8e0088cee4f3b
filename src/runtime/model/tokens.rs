//! Text to tokens and back, by the `tokenizer.json` of a directory.
//!
//! Always: a text is never cut or padded, whatever the file asks for; streamed text is whole characters.
//!
//! Knows no chat template: whoever wants one applies it to the prompt.

use std::path::{Path, PathBuf};

use tokenizers::Tokenizer;

use crate::runtime::model::Error;

/// A directory's tokenizer.
///
/// ```
/// use quantfs::runtime::model::Tokens;
/// # let dir = tempfile::tempdir()?;
/// # let words = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
/// #     "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
/// #     "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "quantized": 1, "files": 2}, "unk_token": "<unk>"}}"#;
/// # std::fs::write(dir.path().join("tokenizer.json"), words)?;
/// let tokens = Tokens::open(dir.path())?; // `tokenizer.json`
/// let prompt = tokens.prompt("quantized files")?;
/// assert_eq!(prompt, [1, 2]);
/// assert_eq!(tokens.text(&prompt)?, "quantized files");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Tokens {
    tokenizer: Tokenizer,
    path: PathBuf,
}

impl Tokens {
    /// Reads `tokenizer.json`.
    ///
    /// # Errors
    /// A file that is missing or that the `tokenizers` crate does not understand.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, Error> {
        let path = dir.as_ref().join("tokenizer.json");
        let refused = |why: String| Error::Tokenizer { path: path.display().to_string(), why };
        let bytes = std::fs::read(&path).map_err(|e| {
            refused(format!("{e} (`AutoTokenizer.from_pretrained(..).save_pretrained(..)` writes one)"))
        })?;
        let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(|e| refused(e.to_string()))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| refused(e.to_string()))?;
        Ok(Self { tokenizer, path })
    }

    /// The tokens of a prompt, with the special ones that the tokenizer puts around it; not a second
    /// time where the text begins with them already, as chat templates have it.
    ///
    /// # Errors
    /// What the tokenizer cannot encode.
    pub fn prompt(&self, text: &str) -> Result<Vec<u32>, Error> {
        let plain = self.plain(text)?;
        let whole = self.encode(text, true)?;
        let added = whole.len() - plain.len().min(whole.len());
        if added > 0 && !plain.is_empty() && plain.first() == whole.first() {
            return Ok(plain);
        }
        Ok(whole)
    }

    /// The tokens of a text, without special ones around it.
    ///
    /// # Errors
    /// What the tokenizer cannot encode.
    pub fn plain(&self, text: &str) -> Result<Vec<u32>, Error> {
        self.encode(text, false)
    }

    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, Error> {
        let encoding = self.tokenizer.encode_fast(text, special).map_err(|e| self.failed(&e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of tokens, special ones left out.
    ///
    /// # Errors
    /// What the tokenizer cannot decode.
    pub fn text(&self, tokens: &[u32]) -> Result<String, Error> {
        self.tokenizer.decode(tokens, true).map_err(|e| self.failed(&e))
    }

    /// Text as its tokens come.
    #[must_use]
    pub fn stream(&self) -> Stream<'_> {
        Stream { tokens: self, pending: vec![], context: 0, told: 0 }
    }

    fn failed(&self, why: &tokenizers::Error) -> Error {
        Error::Tokenizer { path: self.path.display().to_string(), why: why.to_string() }
    }
}

/// Replacement characters at the end of a text that the next tokens may still turn into a character:
/// an unfinished one has three bytes at most.
const UNSETTLED: usize = 3;

/// Tokens after which text is told even if it never was whole: a model that writes no UTF-8.
const PATIENCE: usize = 64;

/// Text as its tokens come. Pieces put together are what [`Tokens::text`] gives for all tokens.
#[derive(Debug)]
pub struct Stream<'t> {
    tokens: &'t Tokens,
    /// The tokens whose text is being told, after some told ones: text may depend on what is before
    /// it (a leading space, say).
    pending: Vec<u32>,
    /// How many of them are there for that reason alone.
    context: usize,
    /// Bytes of their text that were told.
    told: usize,
}

impl Stream<'_> {
    /// The text that a token adds: none while a character is not whole.
    ///
    /// # Errors
    /// What the tokenizer cannot decode.
    pub fn push(&mut self, token: u32) -> Result<String, Error> {
        self.pending.push(token);
        let text = self.tokens.text(&self.pending)?;
        let impatient = self.pending.len() - self.context >= PATIENCE;
        let settled = if impatient { text.len() } else { settled(&text) };
        let new = self.tell(&text, settled);
        if settled == text.len() && !new.is_empty() {
            self.pending.drain(..self.context);
            self.context = self.pending.len();
            self.told = self.tokens.text(&self.pending)?.len();
        }
        Ok(new)
    }

    /// What is left when no token follows: an unfinished character is shown as replacement characters.
    ///
    /// # Errors
    /// What the tokenizer cannot decode.
    pub fn finish(&mut self) -> Result<String, Error> {
        let text = self.tokens.text(&self.pending)?;
        Ok(self.tell(&text, text.len()))
    }

    fn tell(&mut self, text: &str, to: usize) -> String {
        let new = text.get(self.told..to).unwrap_or_default().to_owned();
        self.told = self.told.max(to);
        new
    }
}

/// Bytes of a text that no further token changes.
fn settled(text: &str) -> usize {
    let unsettled = text.chars().rev().take(UNSETTLED).take_while(|c| *c == char::REPLACEMENT_CHARACTER);
    text.len() - unsettled.count() * char::REPLACEMENT_CHARACTER.len_utf8()
}
