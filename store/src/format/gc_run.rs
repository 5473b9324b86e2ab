//! The last garbage collection, as the index keeps it: its times and its outcome.

use super::{
    FormatError,
    fields::{Fields, FieldsMut, put_count, put_text},
};

/// First byte of the value.
const VERSION: u8 = 1;
/// Bytes before the texts.
const FIXED_BYTES: usize = 80;

/// A garbage collection that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastRun {
    /// When it began, in nanoseconds since 1970.
    pub started_at_ns: u64,
    /// When it ended, in nanoseconds since 1970.
    pub ended_at_ns: u64,
    /// Its outcome, or why it failed.
    pub outcome: Result<GcReport, String>,
}

/// The outcome of a garbage collection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Packs that were removed.
    pub packs_removed: u64,
    /// Bytes of their files.
    pub removed_bytes: u64,
    /// Bytes that were written for that: copies of needed records, with the headers and footers of
    /// their packs, and the footers of packs that were sealed.
    pub copied_bytes: u64,
    /// Bytes of records that nothing needed, as the run found them.
    pub dead_bytes: u64,
    /// Bytes of records that are needed, as the run found them.
    pub live_bytes: u64,
    /// Number of passes over all leaves; 0 if it was stopped before it knew the needed records.
    pub passes: u32,
    /// Packs that stay because somebody relies on them.
    pub packs_held: u64,
    /// The snapshots and volumes that are being stored and rely on them. At most
    /// [`GC_REASONS_MAX`](crate::limits::GC_REASONS_MAX).
    pub held_by: Vec<String>,
    /// Packs that stay because needed records in them are damaged, or whose files are gone.
    pub packs_damaged: u64,
    /// Their damage. At most [`GC_REASONS_MAX`](crate::limits::GC_REASONS_MAX).
    pub damage: Vec<String>,
    /// True if it was stopped before its end.
    pub stopped: bool,
}

impl LastRun {
    /// As a value.
    ///
    /// | offset | bytes | field |
    /// | --- | --- | --- |
    /// | 0 | 1 | version: 1 |
    /// | 1 | 1 | 0 failed, 1 ended, 2 stopped |
    /// | 2 | 2 | zero |
    /// | 4 | 4 | passes |
    /// | 8 | 8 | began at, nanoseconds since 1970 |
    /// | 16 | 8 | ended at |
    /// | 24 | 8 | packs removed |
    /// | 32 | 8 | bytes of their files |
    /// | 40 | 8 | bytes copied |
    /// | 48 | 8 | dead bytes |
    /// | 56 | 8 | live bytes |
    /// | 64 | 8 | packs held |
    /// | 72 | 8 | packs with damage |
    /// | 80 | | who holds packs: how many, and each as a text |
    /// | | | damage: how many, and each as a text |
    /// | | | if it failed, the reason, a text; the numbers are zero then |
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let failed = GcReport::default();
        let report = self.outcome.as_ref().unwrap_or(&failed);
        let end = match &self.outcome {
            Err(_) => 0,
            Ok(report) if report.stopped => 2,
            Ok(_) => 1,
        };
        let mut bytes = vec![0; FIXED_BYTES];
        FieldsMut::new(&mut bytes)
            .u8(VERSION)
            .u8(end)
            .reserved(2)
            .u32(report.passes)
            .u64(self.started_at_ns)
            .u64(self.ended_at_ns)
            .u64(report.packs_removed)
            .u64(report.removed_bytes)
            .u64(report.copied_bytes)
            .u64(report.dead_bytes)
            .u64(report.live_bytes)
            .u64(report.packs_held)
            .u64(report.packs_damaged);
        for texts in [&report.held_by, &report.damage] {
            put_count(&mut bytes, texts.len());
            texts.iter().for_each(|text| put_text(&mut bytes, text));
        }
        if let Err(reason) = &self.outcome {
            put_text(&mut bytes, reason);
        }
        bytes
    }

    /// From a value.
    ///
    /// # Errors
    ///
    /// If the bytes are not such a value.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields::new("last garbage collection", bytes);
        match fields.u8()? {
            VERSION => {}
            other => {
                return Err(FormatError::unknown(
                    "version of the last garbage collection",
                    VERSION,
                    other,
                ));
            }
        }
        let end = fields.u8()?;
        fields.reserved(2)?;
        let passes = fields.u32()?;
        let (started_at_ns, ended_at_ns) = (fields.u64()?, fields.u64()?);
        let mut report = GcReport {
            passes,
            packs_removed: fields.u64()?,
            removed_bytes: fields.u64()?,
            copied_bytes: fields.u64()?,
            dead_bytes: fields.u64()?,
            live_bytes: fields.u64()?,
            packs_held: fields.u64()?,
            packs_damaged: fields.u64()?,
            stopped: end == 2,
            ..GcReport::default()
        };
        for texts in [&mut report.held_by, &mut report.damage] {
            for _ in 0..fields.u32()? {
                texts.push(fields.text()?);
            }
        }
        let outcome = match end {
            0 if report == GcReport::default() => Err(fields.text()?),
            1 | 2 => Ok(report),
            other => {
                return Err(FormatError::differs(
                    "end of a garbage collection",
                    "0 (failed) with no numbers, 1 (ended) or 2 (stopped)",
                    other,
                ));
            }
        };
        fields.end()?;
        Ok(Self {
            started_at_ns,
            ended_at_ns,
            outcome,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use super::{
        super::tests::{assert_bytes, assert_every_byte_counts},
        *,
    };

    fn ended() -> LastRun {
        LastRun {
            started_at_ns: 1_735_689_600_123_456_789,
            ended_at_ns: 1_735_689_600_917_051_157,
            outcome: Ok(GcReport {
                packs_removed: 7,
                removed_bytes: 7 << 28,
                copied_bytes: 3 << 20,
                dead_bytes: 6 << 28,
                live_bytes: 1 << 40,
                passes: 2,
                packs_held: 3,
                held_by: vec!["web".to_owned(), "db".to_owned()],
                packs_damaged: 1,
                damage: vec!["cut".to_owned()],
                stopped: false,
            }),
        }
    }

    #[test]
    fn the_last_run_is_encoded_like_this() {
        let run = ended();
        let bytes = run.encode();
        assert_bytes(
            &bytes,
            &[
                "01010000",
                "02000000",
                "15cdb2c77e681618",
                "151700f77e681618",
                "0700000000000000",
                "0000007000000000",
                "0000300000000000",
                "0000006000000000",
                "0000000000010000",
                "0300000000000000",
                "0100000000000000",
                "02000000",
                "03000000776562",
                "020000006462",
                "01000000",
                "03000000637574",
            ],
        );
        assert_eq!(LastRun::decode(&bytes), Ok(run));
        assert_every_byte_counts(&bytes, |bytes| {
            let run = LastRun::decode(bytes)?;
            match run == ended() {
                true => Ok(run),
                false => Err(FormatError::differs("run", "another", "this")),
            }
        });
    }

    #[test]
    fn runs_that_were_stopped_or_failed_come_back_as_they_were() {
        let mut run = ended();
        run.outcome.as_mut().unwrap().stopped = true;
        assert_eq!(LastRun::decode(&run.encode()).as_ref(), Ok(&run));
        run.outcome = Err("the disk is full".to_owned());
        let mut bytes = run.encode();
        assert_eq!(LastRun::decode(&bytes), Ok(run));
        // A run that has failed has no numbers.
        bytes[24] = 1;
        let error = LastRun::decode(&bytes).unwrap_err();
        assert!(!error.is_unknown(), "{error}");
        bytes[0] = 2;
        assert!(LastRun::decode(&bytes).unwrap_err().is_unknown());
    }
}
