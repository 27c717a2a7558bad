//! Floods of one call site and of many call sites, and hostile lines.

use std::sync::Arc;
use std::thread;

use log::LevelFilter;
use parking_lot::Mutex;

use super::*;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock())
    }
}

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= LevelFilter::Debug
    }

    fn log(&self, record: &Record<'_>) {
        let location = format!("{}:{}", record.file().unwrap_or("-"), record.line().unwrap_or(0));
        self.0.lock().push(format!("{} {location} {}", record.level(), record.args()));
    }

    fn flush(&self) {}
}

/// Returns a logger, its written lines, and its clock in milliseconds.
fn logger() -> (LimitedLogger<Lines>, Lines, Arc<AtomicU64>) {
    let (lines, clock) = (Lines::default(), Arc::new(AtomicU64::new(0)));
    let time = Arc::clone(&clock);
    let now = move || time.load(Ordering::Relaxed) * 1_000_000;
    (LimitedLogger::with_clock(lines.clone(), now), lines, clock)
}

fn log(logger: &impl Log, level: Level, line: u32, text: fmt::Arguments<'_>) {
    let mut record = Record::builder();
    record.level(level).target("mesos_network_overlay::a").line(Some(line));
    record.module_path_static(Some("mesos_network_overlay::a")).file_static(Some("src/a.rs"));
    logger.log(&record.args(text).build());
}

#[test]
fn flood_of_one_call_site_is_limited_and_counted() {
    let (logger, lines, clock) = logger();
    let before = lines_left_out();
    for number in 0..400_000 {
        log(&logger, Level::Info, 7, format_args!("agent {number} registers"));
    }
    let written = lines.take();
    assert_eq!(written.len(), 100);
    assert_eq!(written[99], "INFO src/a.rs:7 agent 99 registers");
    assert!(lines_left_out() - before >= 399_900);

    clock.store(100, Ordering::Relaxed);
    log(&logger, Level::Info, 7, format_args!("agent 5 registers"));
    log(&logger, Level::Info, 7, format_args!("agent 6 registers"));
    let next = "INFO src/a.rs:7 agent 5 registers (399900 lines like this left out before)";
    assert_eq!(lines.take(), [next]);

    // After a minute the whole burst is available again, and no more.
    clock.store(60_000, Ordering::Relaxed);
    for _ in 0..1000 {
        log(&logger, Level::Info, 7, format_args!("again"));
    }
    let written = lines.take();
    assert_eq!(written.len(), 100);
    assert_eq!(written[0], "INFO src/a.rs:7 again (1 line like this left out before)");
}

#[test]
fn flush_after_flood_logs_omitted_lines() {
    let (logger, lines, _) = logger();
    for number in 0..250 {
        log(&logger, Level::Warn, 7, format_args!("link {number} \u{1b}[31m{}", "x".repeat(500)));
        log(&logger, Level::Warn, 8, format_args!("few"));
    }
    lines.take();
    logger.flush();
    let flushed = lines.take();
    assert_eq!(flushed.len(), 2);
    let long = flushed.iter().find(|line| line.contains("a.rs:7")).unwrap();
    let opening = r"WARN src/a.rs:7 left out 150 lines like this one: link 100 \u{1b}[31mxxx";
    assert!(long.starts_with(opening) && long.ends_with("xx… (cut)"), "{long}");
    assert!(flushed.contains(&"WARN src/a.rs:8 left out 150 lines like this one: few".to_owned()));
    logger.flush();
    assert!(lines.take().is_empty());
}

#[test]
fn flood_of_one_call_site_does_not_limit_others() {
    let (logger, lines, _) = logger();
    for _ in 0..1000 {
        log(&logger, Level::Error, 7, format_args!("flood"));
    }
    lines.take();
    log(&logger, Level::Error, 8, format_args!("the store failed"));
    assert_eq!(lines.take(), ["ERROR src/a.rs:8 the store failed"]);
}

#[test]
fn flood_of_many_call_sites_is_limited_in_bytes() {
    let (logger, lines, clock) = logger();
    let text = "x".repeat(4000);
    for second in 0..20 {
        clock.store(second * 1000, Ordering::Relaxed);
        for line in 0..600 {
            log(&logger, Level::Info, line, format_args!("{text}"));
        }
    }
    let bytes: usize = lines.take().iter().map(String::len).sum();
    // The burst, 20 s of the rate, and two lines of each call site after 10 s of silence.
    assert!(bytes > 1024 * 1024, "{bytes}");
    assert!(bytes < 1024 * 1024 + 20 * 16 * 1024 + 2 * 600 * 4100, "{bytes}");

    // A silent call site writes one line.
    log(&logger, Level::Error, 700, format_args!("the store failed"));
    log(&logger, Level::Error, 700, format_args!("the store failed"));
    assert_eq!(lines.take(), ["ERROR src/a.rs:700 the store failed"]);
}

#[test]
fn debug_lines_are_not_limited() {
    let (logger, lines, _) = logger();
    for _ in 0..1000 {
        log(&logger, Level::Debug, 7, format_args!("enabled"));
        log(&logger, Level::Trace, 7, format_args!("not enabled"));
    }
    assert_eq!(lines.take().len(), 1000);
}

#[test]
fn line_is_escaped_and_cut() {
    let (logger, lines, _) = logger();
    log(&logger, Level::Info, 7, format_args!("{}\n{}", "\u{202e}txt\u{1b}[2J", "y".repeat(5000)));
    let [line] = &lines.take()[..] else { panic!("not one line") };
    let opening = r"INFO src/a.rs:7 \u{202e}txt\u{1b}[2J\nyyy";
    assert!(line.starts_with(opening) && line.ends_with("yy… (cut)"), "{line}");
    assert_eq!(line.chars().count(), "INFO src/a.rs:7 ".len() + 4096 + "… (cut)".chars().count());
}

#[test]
fn call_sites_beyond_maximum_share_limit() {
    let (logger, lines, clock) = logger();
    for line in 0..5000 {
        clock.fetch_add(1, Ordering::Relaxed);
        log(&logger, Level::Info, line, format_args!("short"));
    }
    let written = lines.take().len();
    assert!((1024 + 100..1024 + 600).contains(&written), "{written}");
    logger.flush();
    let flushed = lines.take();
    assert_eq!(flushed.len(), 1, "{flushed:?}");
    assert!(flushed[0].starts_with("WARN src/logging/sites.rs:"), "{flushed:?}");
}

#[test]
fn lines_of_concurrent_threads_are_counted() {
    let (logger, lines, _) = logger();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..1000 {
                    log(&logger, Level::Info, 7, format_args!("flood"));
                }
            });
        }
    });
    assert_eq!(lines.take().len(), 100);
    logger.flush();
    assert_eq!(lines.take(), ["INFO src/a.rs:7 left out 7900 lines like this one: flood"]);
}
