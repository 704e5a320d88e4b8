//! The records of one recording, found by the path of the open stages and modules.

use std::collections::HashMap;
use std::time::Instant;

use super::{Frame, Kind, Span, StageRecord, Synchronize};
use crate::work::Work;

/// Node of the tree of names. The root is the first one.
struct Node {
    name: Box<str>,
    top: bool,
    /// Names from the root to this node, without those of top stages.
    path: String,
    children: Vec<usize>,
    /// Place in `children` after the child that was found last: layers come in order.
    next: usize,
    /// Index of the record, if the node has been measured.
    record: Option<usize>,
}

/// Records of a recording.
pub(super) struct Recorder {
    pub id: u64,
    pub origin: Instant,
    pub synchronize: Option<Synchronize>,
    /// Measures the parts of modules, too.
    pub detailed: bool,
    nodes: Vec<Node>,
    /// Nodes of the frames that are open on the thread.
    open: Vec<usize>,
    /// Number of frames that were open when the recording was entered. They are not recorded.
    base: usize,
    index: HashMap<(&'static str, String), usize>,
    records: Vec<StageRecord>,
}

impl Recorder {
    pub fn new(id: u64, synchronize: Option<Synchronize>, detailed: bool) -> Self {
        let root = Node {
            name: "".into(),
            top: false,
            path: String::new(),
            children: Vec::new(),
            next: 0,
            record: None,
        };
        Self {
            id,
            origin: Instant::now(),
            synchronize,
            detailed,
            nodes: vec![root],
            open: Vec::new(),
            base: 0,
            index: HashMap::new(),
            records: Vec::new(),
        }
    }

    /// Starts to record on a thread with open frames, given by kind and name.
    pub fn enter<'a>(&mut self, frames: impl Iterator<Item = (Kind, &'a str)>) {
        self.open.clear();
        for (kind, name) in frames {
            let node = self.node(kind, name);
            self.open.push(node);
        }
        self.base = self.open.len();
    }

    /// Opens a frame.
    pub fn open(&mut self, kind: Kind, name: &str, stage: &'static str) {
        let node = self.node(kind, name);
        if self.records(kind) && self.nodes[node].record.is_none() {
            self.nodes[node].record = Some(self.record_of(kind, node, stage));
        }
        self.open.push(node);
    }

    /// Returns `true` if frames of a kind have records.
    fn records(&self, kind: Kind) -> bool {
        match kind {
            Kind::Scope => false,
            Kind::Top | Kind::Module => true,
            Kind::Part => self.detailed,
        }
    }

    /// Returns the node of a frame inside those that are open. Top stages are at the root.
    fn node(&mut self, kind: Kind, name: &str) -> usize {
        let parent = match kind {
            Kind::Top => 0,
            _ => self.open.last().copied().unwrap_or(0),
        };
        self.child(parent, kind, name)
    }

    fn child(&mut self, parent: usize, kind: Kind, name: &str) -> usize {
        let Node { children, next, .. } = &self.nodes[parent];
        let (before, after) = children.split_at((*next).min(children.len()));
        let places = (before.len()..).zip(after).chain((0..).zip(before));
        for (place, &child) in places {
            let node = &self.nodes[child];
            if *node.name == *name && node.top == (kind == Kind::Top) {
                self.nodes[parent].next = place + 1;
                return child;
            }
        }
        let outer = &self.nodes[parent];
        let path = match (kind, outer.path.as_str()) {
            (Kind::Top, _) => String::new(),
            (Kind::Part, "") if outer.top => format!("{}.{name}", outer.name),
            (_, "") => name.to_owned(),
            (_, path) => format!("{path}.{name}"),
        };
        let child = self.nodes.len();
        self.nodes.push(Node {
            name: name.into(),
            top: kind == Kind::Top,
            path,
            children: Vec::new(),
            next: 0,
            record: None,
        });
        self.nodes[parent].children.push(child);
        self.nodes[parent].next = self.nodes[parent].children.len();
        child
    }

    /// Returns the record of a node that has none yet. Nodes of the same path in the same stage
    /// share it.
    fn record_of(&mut self, kind: Kind, node: usize, stage: &'static str) -> usize {
        let parent = match kind {
            Kind::Top => None,
            _ => self.enclosing(),
        };
        let name = match kind {
            Kind::Top => stage.to_owned(),
            _ => self.nodes[node].path.clone(),
        };
        self.slot(stage, name, parent)
    }

    /// Returns the record of the innermost open frame that has one.
    fn enclosing(&self) -> Option<usize> {
        let mut open = self.open.iter().rev();
        open.find_map(|&node| self.nodes[node].record)
    }

    fn slot(&mut self, stage: &'static str, name: String, parent: Option<usize>) -> usize {
        let records = &mut self.records;
        let place = self.index.entry((stage, name));
        *place.or_insert_with_key(|(stage, name)| {
            records.push(StageRecord::new(name, stage, parent));
            records.len() - 1
        })
    }

    /// Ends the innermost frame with its measurements.
    pub fn close(&mut self, frame: &Frame, end: &super::End) {
        let Some(node) = self.open.pop() else { return };
        if self.open.len() < self.base {
            self.base = self.open.len();
            return;
        }
        let Some(place) = self.nodes[node].record else {
            return;
        };
        if !self.records(frame.kind) {
            return;
        }
        let record = &mut self.records[place];
        record.time += end.time;
        record.child_time += frame.child_time;
        record.wait += end.wait;
        record.calls += 1;
        record.launches += end.launches;
        record.peak_bytes = record.peak_bytes.max(end.peak);
        let own = end.peak.saturating_sub(frame.held);
        if record.calls == 1 || own > record.own_peak_bytes {
            record.own_peak_bytes = own;
            record.held_bytes = frame.held;
        }
        record.add(frame.work);
        record.spans.push(Span {
            start: frame.start.saturating_duration_since(self.origin),
            time: end.elapsed,
            begin_bytes: frame.held,
            end_bytes: end.held,
        });
    }

    /// Adds a part that was measured inside the innermost open frame.
    pub fn add_part(
        &mut self,
        name: &'static str,
        time: std::time::Duration,
        work: Work,
        stage: &'static str,
    ) {
        if !self.detailed || self.open.len() <= self.base {
            return;
        }
        let node = self.node(Kind::Part, name);
        let place = match self.nodes[node].record {
            Some(place) => place,
            None => self.record_of(Kind::Part, node, stage),
        };
        self.nodes[node].record = Some(place);
        let record = &mut self.records[place];
        record.time += time;
        record.calls += 1;
        record.add(work);
    }

    /// Adds a weight that the innermost open frame reads.
    pub fn add_weight(&mut self, weight: (usize, usize)) {
        let recorded = self.open.len() > self.base;
        let Some(place) = self.enclosing().filter(|_| recorded) else {
            return;
        };
        let weights = &mut self.records[place].weights;
        if !weights.contains(&weight) {
            weights.push(weight);
        }
    }

    /// Adds a record of a helper. `offset` is the time from the start of this recording to that of
    /// the helper, `share` the part of the time that is hidden.
    pub fn add_helper(&mut self, record: &StageRecord, offset: std::time::Duration, share: f64) {
        let place = self.slot(record.stage, record.name.clone(), None);
        let sum = &mut self.records[place];
        sum.time += record.time;
        sum.child_time += record.child_time;
        sum.wait += record.wait;
        sum.calls += record.calls;
        sum.launches += record.launches;
        sum.hidden += record.time.mul_f64(share);
        let spans = record.spans.iter().map(|span| Span {
            start: span.start + offset,
            ..*span
        });
        sum.helper_spans.extend(spans);
    }

    pub fn records_so_far(&self) -> &[StageRecord] {
        &self.records
    }

    /// Returns the records. A stage or module has as many tokens as its largest child.
    pub fn finish(mut self) -> Vec<StageRecord> {
        for child in (0..self.records.len()).rev() {
            if let Some(parent) = self.records[child].parent {
                let tokens = self.records[child].work.tokens;
                let outer = &mut self.records[parent].work.tokens;
                *outer = tokens.max(*outer);
            }
        }
        self.records
    }
}
