use crate::{Error, Result};

/// A tokenizer as `tokenizer.json` states it.
///
/// ```no_run
/// use prune_candle::Tokenizer;
/// let json = std::fs::read("model/tokenizer.json")?;
/// let ids = Tokenizer::from_bytes(&json)?.encode("Once upon a time")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Tokenizer(tokenizers::Tokenizer);

impl Tokenizer {
    /// The tokenizer that the bytes of a `tokenizer.json` describe.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn from_bytes(json: &[u8]) -> Result<Self> {
        let mut inner =
            tokenizers::Tokenizer::from_bytes(json).map_err(|e| Error::Tokenizer(e.to_string()))?;
        // A stored truncation or padding length would silently shorten or lengthen the text.
        inner.with_truncation(None).map_err(|e| Error::Tokenizer(e.to_string()))?;
        inner.with_padding(None);
        Ok(Self(inner))
    }

    /// The token ids of `text`, without special tokens.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding =
            self.0.encode_fast(text, false).map_err(|e| Error::Tokenizer(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The token ids of `text` with the special tokens that the tokenizer puts around it: `[CLS]`
    /// and `[SEP]` for BERT.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        let encoding =
            self.0.encode_fast(text, true).map_err(|e| Error::Tokenizer(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The special tokens that the tokenizer puts before and after a text; both empty when it
    /// puts none.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when a text does not come out whole between them.
    pub fn frame(&self) -> Result<(Vec<u32>, Vec<u32>)> {
        let text = "a";
        let (bare, framed) = (self.encode(text)?, self.encode_with_special(text)?);
        let start = framed.windows(bare.len().max(1)).position(|window| window == bare);
        match start {
            Some(start) => Ok((framed[..start].to_vec(), framed[start + bare.len()..].to_vec())),
            None => Err(Error::Tokenizer(format!(
                "`{text}` is {bare:?} alone, but {framed:?} with special tokens; expected the same \
                 tokens between them"
            ))),
        }
    }

    /// The text of token ids.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.0.decode(ids, true).map_err(|e| Error::Tokenizer(e.to_string()))
    }

    /// The number of token ids, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.0.get_vocab_size(true)
    }

    /// Checks that every id of this tokenizer is one of a model with `vocab` ids.
    ///
    /// # Errors
    /// [`Error::TokenizerTooLarge`] naming the largest id.
    pub fn check_fits(&self, vocab: usize) -> Result<()> {
        let largest = self.0.get_vocab(true).into_values().max().unwrap_or(0);
        if (largest as usize) < vocab {
            return Ok(());
        }
        Err(Error::TokenizerTooLarge { id: largest, vocab })
    }
}
