//! Small Parquet files in the layout of `datasets`.

use std::sync::Arc;

use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::parser::parse_message_type;

/// Values of a column.
pub enum Column {
    Texts(Vec<String>),
    Integers(Vec<i64>),
    Lists(Vec<Vec<String>>),
    /// Groups of bytes and a path.
    Media(Vec<Vec<u8>>),
}

impl Column {
    pub fn texts(texts: &[&str]) -> Self {
        Self::Texts(owned(texts))
    }

    pub fn integers(integers: &[i64]) -> Self {
        Self::Integers(integers.to_vec())
    }

    pub fn lists(lists: &[&[&str]]) -> Self {
        Self::Lists(lists.iter().map(|list| owned(list)).collect())
    }

    pub fn media(media: &[&[u8]]) -> Self {
        Self::Media(media.iter().map(|bytes| bytes.to_vec()).collect())
    }

    fn schema(&self, name: &str) -> String {
        match self {
            Self::Texts(_) => format!("optional binary {name} (UTF8);"),
            Self::Integers(_) => format!("optional int64 {name};"),
            Self::Lists(_) => format!(
                "optional group {name} (LIST) {{ repeated group list {{ \
                 optional binary element (UTF8); }} }}"
            ),
            Self::Media(_) => format!(
                "optional group {name} {{ optional binary bytes; optional binary path (UTF8); }}"
            ),
        }
    }
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

/// Returns a file with these row groups, compressed as by `datasets`.
pub fn parquet(groups: &[Vec<(&str, Column)>]) -> Vec<u8> {
    let columns = groups[0].iter();
    let fields: String = columns.map(|(name, column)| column.schema(name)).collect();
    let schema = parse_message_type(&format!("message schema {{ {fields} }}")).expect("a schema");
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY);
    let properties = Arc::new(properties.build());
    let mut writer =
        SerializedFileWriter::new(Vec::new(), Arc::new(schema), properties).expect("a writer");
    for columns in groups {
        let mut group = writer.next_row_group().expect("a row group");
        let mut next = |write: &dyn Fn(&mut SerializedColumnWriter<'_>)| {
            let mut column = group.next_column().expect("valid").expect("a column");
            write(&mut column);
            column.close().expect("written");
        };
        for (_, column) in columns {
            match column {
                Column::Texts(texts) => next(&|column| write_bytes(column, texts, 1)),
                Column::Integers(integers) => next(&|column| {
                    let levels = vec![1; integers.len()];
                    let column = column.typed::<Int64Type>();
                    column
                        .write_batch(integers, Some(&levels), None)
                        .expect("written");
                }),
                Column::Lists(lists) => next(&|column| write_lists(column, lists)),
                Column::Media(media) => {
                    next(&|column| write_bytes(column, media, 2));
                    let paths = vec!["image.png"; media.len()];
                    next(&|column| write_bytes(column, &paths, 2));
                }
            }
        }
        group.close().expect("written");
    }
    writer.into_inner().expect("written")
}

fn write_bytes(column: &mut SerializedColumnWriter<'_>, values: &[impl AsRef<[u8]>], level: i16) {
    let values: Vec<ByteArray> = values
        .iter()
        .map(|value| value.as_ref().to_vec().into())
        .collect();
    let levels = vec![level; values.len()];
    let column = column.typed::<ByteArrayType>();
    column
        .write_batch(&values, Some(&levels), None)
        .expect("written");
}

fn write_lists(column: &mut SerializedColumnWriter<'_>, lists: &[Vec<String>]) {
    let (mut values, mut definition, mut repetition) = (Vec::new(), Vec::new(), Vec::new());
    for list in lists {
        for (index, text) in list.iter().enumerate() {
            values.push(ByteArray::from(text.as_str()));
            definition.push(3);
            repetition.push(i16::from(index > 0));
        }
        if list.is_empty() {
            definition.push(1);
            repetition.push(0);
        }
    }
    let column = column.typed::<ByteArrayType>();
    let written = column.write_batch(&values, Some(&definition), Some(&repetition));
    written.expect("written");
}
