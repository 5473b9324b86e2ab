//! A kind of record that only tests have: what a new noun takes is this file, its line in `mod.rs`,
//! and one in a registry.

use varve_content::RootId;

use super::{
    AccessKeyRecord, AccountRecord, CatalogRecord, CopyRecord, Counter, ImageRecord, Keys, Kind,
    Kinds, RemoteRecord, SnapshotRecord, Tags, TokenRecord, VolumeRecord, named,
};
use crate::format::{
    AccountId, FormatError, IdKind, RecordId,
    fields::{Fields, put_tags, put_text},
};

/// The registry of this program, with notes: what stands in [`Kinds::ALL`], and a line.
pub(crate) const KINDS: Kinds = Kinds(&[
    SnapshotRecord::KIND,
    VolumeRecord::KIND,
    CopyRecord::KIND,
    RemoteRecord::KIND,
    AccountRecord::KIND,
    TokenRecord::KIND,
    AccessKeyRecord::KIND,
    ImageRecord::KIND,
    Note::KIND,
]);

#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum OfNote {}

impl IdKind for OfNote {
    const WHAT: &'static str = "id of a note";
    const PREFIX: &'static str = "note-";
}

/// A text with a name and tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) id: RecordId<OfNote>,
    pub(crate) name: Option<String>,
    pub(crate) tags: Tags,
    pub(crate) text: String,
}

impl CatalogRecord for Note {
    type Id = RecordId<OfNote>;

    const KIND: &'static Kind = &Kind::of::<Self>("note", 30, "notes")
        .with_labels("note-names")
        .with_tags("note-tags")
        .with_counter(Counter::Others);

    fn keys(&self) -> Keys<'_, Self::Id> {
        Keys {
            id: self.id,
            owner: AccountId::ADMINISTRATOR,
            name: self.name.as_deref(),
            tags: Some(&self.tags),
        }
    }

    fn roots(&self) -> Vec<RootId> {
        Vec::new()
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![1, u8::from(self.name.is_none())];
        bytes.extend_from_slice(self.id.as_bytes());
        put_text(&mut bytes, self.name.as_deref().unwrap_or_default());
        put_tags(&mut bytes, &self.tags);
        put_text(&mut bytes, &self.text);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        const WHAT: &str = "record of a note";
        let mut fields = Fields::new(WHAT, bytes);
        let (version, has_no_name) = (fields.u8()?, fields.u8()?);
        if (version, has_no_name & !1) != (1, 0) {
            return Err(FormatError::unknown(
                "version of a note's record",
                1,
                version,
            ));
        }
        let note = Self {
            id: RecordId::decode_from(&mut fields)?,
            name: named(WHAT, fields.text()?, has_no_name == 1)?,
            tags: fields.tags()?,
            text: fields.text()?,
        };
        fields.end()?;
        Ok(note)
    }
}
