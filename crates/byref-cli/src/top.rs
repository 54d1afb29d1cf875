//! `byref top`: all topics in a terminal, as they are from second to second.

use crate::output::{bytes, number, who};
use crate::rates::{Rate, positive_seconds};
use crate::topics::policy;
use crate::{Failure, Outcome};
use byref::{PublisherReport, publishers};
use clap::{Args, ValueEnum};
use ratatui::Frame;
use ratatui::Terminal;
use ratatui::backend::TermionBackend;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::termion::event::Key;
use ratatui::termion::input::TermRead;
use ratatui::termion::raw::IntoRawMode;
use ratatui::termion::screen::IntoAlternateScreen;
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph, Row, Sparkline, Table, TableState};
use std::collections::{HashMap, VecDeque};
use std::io::{self, IsTerminal};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

/// The columns and lines that the view needs.
const LEAST: (u16, u16) = (40, 6);
/// Rates of a publisher that its page shows.
const HISTORY: usize = 240;

/// All topics in a terminal, as they are from second to second.
#[derive(Args)]
pub struct Top {
    /// Which topics
    #[arg(default_value = "**")]
    pattern: String,
    /// How many seconds lie between two looks
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = positive_seconds)]
    every: Duration,
    /// What comes first
    #[arg(long, value_enum, default_value = "rate")]
    sort: Order,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Order {
    /// Messages per second
    Rate,
    /// Bytes per second
    Bytes,
    /// Messages that the slowest subscriber is behind
    Behind,
    /// Payload memory taken
    Memory,
    /// The topics' names
    Topic,
}

impl Order {
    const ALL: [Order; 5] = [Order::Rate, Order::Bytes, Order::Behind, Order::Memory, Order::Topic];

    fn next(self) -> Order {
        let at = Order::ALL.iter().position(|order| *order == self).unwrap_or(0);
        Order::ALL[(at + 1) % Order::ALL.len()]
    }

    fn name(self) -> &'static str {
        match self {
            Order::Rate => "rate",
            Order::Bytes => "bytes",
            Order::Behind => "behind",
            Order::Memory => "memory",
            Order::Topic => "topic",
        }
    }
}

/// What the view is told.
enum News {
    Key(Key),
    Looked(byref::Result<Vec<PublisherReport>>),
    /// The keyboard is gone.
    Over,
}

impl Top {
    pub fn run(self) -> Outcome {
        if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            let text = "top needs a terminal; byref topics writes the same for files and pipes";
            return Err(Failure::Io(io::Error::other(text)));
        }
        let mut view = View { every: self.every, order: self.sort, ..View::of(&self.pattern) };
        view.look(publishers(&self.pattern)); // What cannot work is said before the screen changes.
        if let Some(problem) = view.problem.take() {
            return Err(problem.into());
        }
        let (sender, news) = mpsc::channel();
        let keys = sender.clone();
        thread::spawn(move || read_keys(&keys));
        let (pattern, every) = (self.pattern, self.every);
        thread::spawn(move || look_again_and_again(&pattern, every, &sender));
        let screen = io::stdout().into_raw_mode()?.into_alternate_screen()?;
        let mut terminal = Terminal::new(TermionBackend::new(screen))?;
        loop {
            terminal.draw(|frame| view.draw(frame))?;
            match news.recv_timeout(Duration::from_millis(250)) {
                Ok(News::Key(key)) if !view.press(key) => return Ok(()),
                Ok(News::Key(_)) => {}
                Ok(News::Looked(found)) => view.look(found),
                // The terminal may have another size.
                Err(RecvTimeoutError::Timeout) => {}
                Ok(News::Over) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }
}

fn read_keys(sender: &Sender<News>) {
    for key in io::stdin().keys() {
        let Ok(key) = key else { break };
        if sender.send(News::Key(key)).is_err() {
            return;
        }
    }
    let _ = sender.send(News::Over);
}

fn look_again_and_again(pattern: &str, every: Duration, sender: &Sender<News>) {
    let mut next = Instant::now();
    loop {
        next = (next + every).max(Instant::now());
        thread::sleep(next.saturating_duration_since(Instant::now()));
        if sender.send(News::Looked(publishers(pattern))).is_err() {
            return;
        }
    }
}

/// A publisher in the view.
struct Seen {
    report: PublisherReport,
    rate: Option<Rate>,
}

impl Seen {
    fn behind(&self) -> u64 {
        self.report.subscribers.iter().map(|one| one.lag).max().unwrap_or(0)
    }

    fn held(&self) -> u64 {
        self.report.subscribers.iter().map(|one| one.held_bytes).sum()
    }
}

/// What is shown.
struct View {
    pattern: String,
    every: Duration,
    all: Vec<Seen>,
    /// Messages per second so far, by publisher.
    rates: HashMap<u128, VecDeque<u64>>,
    order: Order,
    filter: String,
    is_typing: bool,
    /// The publisher at the mark.
    marked: Option<u128>,
    is_page: bool,
    problem: Option<byref::Error>,
}

impl View {
    fn of(pattern: &str) -> Self {
        View {
            pattern: pattern.to_owned(),
            every: Duration::from_secs(1),
            all: Vec::new(),
            rates: HashMap::new(),
            order: Order::Rate,
            filter: String::new(),
            is_typing: false,
            marked: None,
            is_page: false,
            problem: None,
        }
    }

    fn look(&mut self, found: byref::Result<Vec<PublisherReport>>) {
        let found = match found {
            Ok(found) => found,
            Err(problem) => {
                self.problem = Some(problem);
                return;
            }
        };
        self.problem = None;
        let before: Vec<_> = std::mem::take(&mut self.all).into_iter().map(|seen| seen.report).collect();
        for report in found {
            let rate = Rate::between(&before, &report);
            let rates = self.rates.entry(report.id).or_default();
            rates.push_back(rate.map_or(0, |rate| rate.messages as u64));
            if rates.len() > HISTORY {
                rates.pop_front();
            }
            self.all.push(Seen { report, rate });
        }
        self.rates.retain(|id, _| self.all.iter().any(|seen| seen.report.id == *id));
        self.sort();
    }

    fn sort(&mut self) {
        let order = self.order;
        let weight = |seen: &Seen| match order {
            Order::Rate => seen.rate.map_or(0.0, |rate| rate.messages),
            Order::Bytes => seen.rate.map_or(0.0, |rate| rate.bytes),
            Order::Behind => seen.behind() as f64,
            Order::Memory => seen.report.stats.pool_allocated as f64,
            Order::Topic => 0.0,
        };
        // Those of the same weight stay in the order of their topics.
        self.all.sort_by(|one, other| {
            weight(other).total_cmp(&weight(one)).then_with(|| one.report.topic.cmp(&other.report.topic))
        });
    }

    fn shown(&self) -> Vec<&Seen> {
        self.all.iter().filter(|seen| seen.report.topic.contains(&self.filter)).collect()
    }

    fn marked_index(&self, shown: &[&Seen]) -> usize {
        shown.iter().position(|seen| Some(seen.report.id) == self.marked).unwrap_or(0)
    }

    fn move_mark(&mut self, by: isize) {
        let shown = self.shown();
        let at = self.marked_index(&shown).saturating_add_signed(by).min(shown.len().saturating_sub(1));
        self.marked = shown.get(at).map(|seen| seen.report.id);
    }

    /// What a key does; `false`: it ends the view.
    fn press(&mut self, key: Key) -> bool {
        match key {
            Key::Ctrl('c') => return false,
            Key::Esc if self.is_typing || (!self.is_page && !self.filter.is_empty()) => {
                self.is_typing = false;
                self.filter.clear();
            }
            Key::Char('\n') if self.is_typing => self.is_typing = false,
            Key::Backspace if self.is_typing => drop(self.filter.pop()),
            Key::Char(letter) if self.is_typing => self.filter.push(letter),
            Key::Esc | Key::Char('q' | '\n') | Key::Backspace if self.is_page => self.is_page = false,
            Key::Esc | Key::Char('q') => return false,
            Key::Char('\n') => {
                self.move_mark(0);
                self.is_page = self.marked.is_some();
            }
            Key::Char('/') => (self.is_typing, self.is_page) = (true, false),
            Key::Char('s') => {
                self.order = self.order.next();
                self.sort();
            }
            Key::Up | Key::Char('k') => self.move_mark(-1),
            Key::Down | Key::Char('j') => self.move_mark(1),
            Key::PageUp => self.move_mark(-20),
            Key::PageDown => self.move_mark(20),
            Key::Home => self.move_mark(isize::MIN),
            Key::End => self.move_mark(isize::MAX),
            _ => {}
        }
        true
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let area = frame.area();
        if area.width < LEAST.0 || area.height < LEAST.1 {
            let text = format!("{} columns and {} lines are needed", LEAST.0, LEAST.1);
            return frame.render_widget(Paragraph::new(text), area);
        }
        let [head, body, foot] =
            Layout::vertical([Constraint::Length(1), Constraint::Min(1), Constraint::Length(1)]).areas(area);
        frame.render_widget(Paragraph::new(self.headline()), head);
        match self.all.iter().find(|seen| self.is_page && Some(seen.report.id) == self.marked) {
            Some(seen) => self.draw_page(seen, frame, body),
            None => self.draw_table(frame, body),
        }
        let keys = if self.is_typing {
            format!("filter: {}_  (Enter: keep, Esc: none)", self.filter)
        } else if self.is_page {
            "Esc: back  q: back  Ctrl-C: end".to_owned()
        } else {
            "q: end  s: sort  /: filter  arrows, Enter: a topic's page".to_owned()
        };
        frame.render_widget(Paragraph::new(keys).style(Style::new().add_modifier(Modifier::DIM)), foot);
    }

    fn headline(&self) -> Line<'static> {
        if let Some(problem) = &self.problem {
            return Line::from(format!("byref: {problem}"));
        }
        let rates = || self.all.iter().filter_map(|seen| seen.rate);
        let filter = if self.filter.is_empty() { String::new() } else { format!(", filter '{}'", self.filter) };
        Line::from(format!(
            "byref top {}: {} publishers, {} msg/s, {}/s, every {:?}, by {}{filter}",
            self.pattern,
            self.all.len(),
            number(rates().map(|rate| rate.messages).sum::<f64>().round()),
            bytes(rates().map(|rate| rate.bytes).sum::<f64>().round()),
            self.every,
            self.order.name(),
        ))
        .style(Style::new().add_modifier(Modifier::BOLD))
    }

    fn draw_table(&self, frame: &mut Frame<'_>, area: Rect) {
        let shown = self.shown();
        let rows = shown.iter().map(|seen| {
            let report = &seen.report;
            let rate = |tell: fn(Rate) -> String| seen.rate.map_or_else(|| "-".to_owned(), tell);
            Row::new([
                report.topic.clone(),
                who(report.pid, report.name.as_deref()),
                format!("{:>8}", rate(|rate| number(rate.messages.round()))),
                format!("{:>9}", rate(|rate| bytes(rate.bytes.round()))),
                format!("{:>4}", report.stats.subscribers),
                format!("{:>7}", number(seen.behind() as f64)),
                format!("{:>8}", bytes(seen.held() as f64)),
                format!("{:>8}", bytes(report.stats.pool_allocated as f64)),
            ])
        });
        let widths = [
            Constraint::Fill(2),
            Constraint::Fill(1),
            Constraint::Length(8),
            Constraint::Length(9),
            Constraint::Length(4),
            Constraint::Length(7),
            Constraint::Length(8),
            Constraint::Length(8),
        ];
        let head = ["TOPIC", "PUBLISHER", "   MSG/S", "  BYTES/S", "SUBS", " BEHIND", "    HELD", "  MEMORY"];
        let table = Table::new(rows, widths)
            .header(Row::new(head).style(Style::new().add_modifier(Modifier::UNDERLINED)))
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        let mut state = TableState::new().with_selected((!shown.is_empty()).then(|| self.marked_index(&shown)));
        frame.render_stateful_widget(table, area, &mut state);
    }

    /// All of one publisher.
    fn draw_page(&self, seen: &Seen, frame: &mut Frame<'_>, area: Rect) {
        let Seen { report, rate } = seen;
        let stats = &report.stats;
        let rate = rate.map_or_else(
            || "not measured yet".to_owned(),
            |rate| format!("{} msg/s, {}/s", number(rate.messages.round()), bytes(rate.bytes.round())),
        );
        let memory = format!(
            "{} in use, {} taken, {} at the most",
            bytes(stats.pool_used as f64),
            bytes(stats.pool_allocated as f64),
            bytes(report.max_memory as f64)
        );
        let lines = [
            format!("{} of process {}", report.topic, who(report.pid, report.name.as_deref())),
            format!("sent     {} messages, {}", stats.sent, bytes(stats.sent_bytes as f64)),
            format!("rate     {rate}"),
            format!("memory   {memory}"),
            format!("waits    {} sends had to wait for room", stats.waits),
        ];
        let [text, line, rest] =
            Layout::vertical([Constraint::Length(lines.len() as u16), Constraint::Length(5), Constraint::Min(0)])
                .areas(area);
        frame.render_widget(Paragraph::new(lines.map(Line::from).to_vec()), text);
        let rates = self.rates.get(&report.id).cloned().unwrap_or_default();
        let most = rates.iter().max().copied().unwrap_or(0);
        let newest: Vec<u64> = rates.iter().rev().take(line.width as usize).rev().copied().collect();
        let title = format!("messages per second, up to {}", number(most as f64));
        frame.render_widget(Sparkline::default().data(newest).block(Block::new().title(title)), line);
        let rows = report.subscribers.iter().map(|one| {
            Row::new([
                who(one.pid, one.name.as_deref()),
                policy(one.policy).to_owned(),
                format!("{:>6}", one.depth),
                format!("{:>7}", number(one.lag as f64)),
                format!("{} ({})", one.held, bytes(one.held_bytes as f64)),
            ])
        });
        let widths = [
            Constraint::Fill(1),
            Constraint::Length(11),
            Constraint::Length(6),
            Constraint::Length(7),
            Constraint::Length(18),
        ];
        let head = Row::new(["SUBSCRIBER", "POLICY", " DEPTH", " BEHIND", "HOLDS"])
            .style(Style::new().add_modifier(Modifier::UNDERLINED));
        frame.render_widget(Table::new(rows, widths).header(head), rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use byref::{Policy, PublisherStats, SubscriberReport};
    use ratatui::backend::TestBackend;

    fn report(topic: &str, id: u128, second: u64, sent: u64) -> PublisherReport {
        let stats = PublisherStats {
            sent,
            sent_bytes: 100 * sent,
            subscribers: 1,
            pool_allocated: (id as u64) << 20,
            ..PublisherStats::default()
        };
        let subscriber = SubscriberReport {
            pid: 7,
            name: Some("viewer".into()),
            policy: Policy::Latest,
            depth: 1,
            lag: 10 - id as u64,
            held: 2,
            held_bytes: 3 << 10,
        };
        PublisherReport {
            topic: topic.into(),
            name: None,
            id,
            pid: 42,
            max_memory: 1 << 30,
            history: 0,
            capacity: 64,
            at_ns: second * 1_000_000_000,
            stats,
            subscribers: vec![subscriber],
        }
    }

    fn view() -> View {
        let mut view = View::of("**");
        view.look(Ok(vec![report("slow", 1, 1, 0), report("fast", 2, 1, 0)]));
        view.look(Ok(vec![report("slow", 1, 3, 20), report("fast", 2, 3, 4000)]));
        view
    }

    fn screen(view: &View, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(line).collect()
    }

    fn topics(view: &View) -> Vec<String> {
        let lines = screen(view, 100, 8);
        let rows = lines[2..lines.len() - 1].iter().filter_map(|line| line.split(' ').next());
        rows.filter(|topic| !topic.is_empty()).map(str::to_owned).collect()
    }

    #[test]
    fn the_busiest_comes_first_and_can_be_sorted_otherwise() {
        let mut view = view();
        let lines = screen(&view, 110, 8);
        assert_eq!(lines[0], "byref top **: 2 publishers, 2.0 k msg/s, 196 KiB/s, every 1s, by rate");
        assert!(lines[1].starts_with("TOPIC"), "{lines:?}");
        let cells: Vec<_> = lines[2].split_whitespace().collect();
        assert_eq!(cells, ["fast", "42", "2.0", "k", "195", "KiB", "1", "8", "3.0", "KiB", "2.0", "MiB"]);
        let mut first = Vec::new();
        for _ in Order::ALL {
            first.push((view.order.name(), topics(&view)[0].clone()));
            assert!(view.press(Key::Char('s')));
        }
        let expected = [("rate", "fast"), ("bytes", "fast"), ("behind", "slow"), ("memory", "fast"), ("topic", "fast")];
        assert_eq!(first, expected.map(|(order, topic)| (order, topic.to_owned())));
    }

    #[test]
    fn keys_filter_and_open_a_page() {
        let mut view = view();
        for key in ['/', 's', 'l', 'q'] {
            assert!(view.press(Key::Char(key)));
        }
        assert!(topics(&view).is_empty());
        view.press(Key::Backspace);
        assert_eq!(topics(&view), ["slow"]);
        view.press(Key::Char('\n'));
        view.press(Key::Char('\n'));
        let page = screen(&view, 80, 20).join("\n");
        for text in ["slow of process 42", "20 messages, 2.0 KiB", "10 msg/s", "7 'viewer'", "latest", "2 (3.0 KiB)"] {
            assert!(page.contains(text), "{text} in\n{page}");
        }
        assert!(view.press(Key::Char('q')), "back");
        assert!(view.press(Key::Esc), "without a filter");
        view.press(Key::Down);
        view.press(Key::End);
        view.press(Key::Char('\n'));
        assert!(screen(&view, 80, 20)[1].starts_with("slow of"));
        view.look(Ok(vec![report("fast", 2, 4, 5000)]));
        assert_eq!(topics(&view), ["fast"], "a page of nobody is none");
        assert!(view.press(Key::Esc));
        assert!(!view.press(Key::Char('q')));
        assert!(!view.press(Key::Ctrl('c')));
    }

    #[test]
    fn a_screen_that_is_too_small_says_so() {
        assert!(screen(&view(), 39, 10)[0].starts_with("40 columns and 6 lines"));
        for (width, height) in [(1, 1), (40, 6), (300, 80)] {
            for is_page in [false, true] {
                let mut view = view();
                view.move_mark(0);
                view.is_page = is_page;
                screen(&view, width, height);
            }
        }
    }
}
