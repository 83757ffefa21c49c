//! `tessera layout`: positions worked out by hand, and a drawing.

use crate::runner::run;

#[track_caller]
fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
}

#[test]
fn the_map_and_the_bits() {
    let text = run(&["layout"]).ok();
    has(&text, &["     0     0.a0    1.a0    2.a0    3.a0    0.a2", "    15    28.a1   29.a1   30.a1   31.a1   28.a3"]);
    has(&text, &["  w0        0S  1E  1F  1M  2S", "7f  7m\n", "  bits 31 to 0  dbbbbbbbbccccccccaaaaaaaaddddddd\n"]);
}

/// Row 30 = 16 + 6 + 8: warp 1, g 6, lower row. k 61 = 3 * 16 + 8 + 2 * 2 + 1: step 3, q 2, right columns, high half.
#[test]
fn the_way_of_one_element() {
    let text = run(&["layout", "--row", "30", "--k", "61"]).ok();
    has(&text, &["byte 30 of the row's 32, high nibble", "58: warp 1, lane 26 (g 6, q 2)"]);
    has(&text, &["a3 of k16 step 3, high half", "bytes 936 to 943", "word at byte 2104, of lanes 24 to 27"]);
    // Pair 7 is shifted right by 6: 24 goes to 18, bit 2 of its half, which the first word keeps at 16; 22, 23 and 31 go to
    // the second word's 16, 17 and 25.
    has(&text, &["decode      (w0 << 2 & 180c180c | w1 & ~180c180c) << 6, & 81c081c0: bits m 22, f 23, e 24, s 31"]);
    has(&text, &["bits m 48, f 49, e 16, s 57", "bits 6, 5, 4, 3, 2, 1, 0, 31", "word, ror 8, & 7f807f80: high half"]);
}

#[test]
fn what_one_thread_holds() {
    let text = run(&["layout", "--warp", "3", "--lane", "31"]).ok();
    has(&text, &["127: warp 3, lane 31 (g 7, q 3)", "bytes 2032 to 2047", "bytes 2172 to 2175"]);
    has(&text, &["3     a3        63    62, 63      7"]);
}

#[test]
fn the_drawing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layout.svg");
    let draw = |choice: &[&str]| {
        assert_eq!(run(&[&["layout", "--svg", path.to_str().unwrap()], choice].concat()).ok(), "");
        std::fs::read_to_string(&path).unwrap()
    };
    let plain = draw(&[]);
    assert!(plain.starts_with("<svg ") && plain.ends_with("</svg>\n"), "{plain}");
    has(&plain, &[">31.a3</text>", ">7m</text>", ">warp 3</text>"]);
    let chosen = |svg: String| svg.matches("class=\"chosen\"").count();
    assert_eq!(chosen(plain), 0);
    assert_eq!(chosen(draw(&["--row", "30", "--k", "61"])), 1 + 1 + 4 + 8); // block, element, code bits, field bits
    assert_eq!(chosen(draw(&["--warp", "1", "--lane", "22"])), 4 + 8); // blocks, elements
    run(&["layout", "--svg", "/nonexistent/layout.svg"]).fails_with(&["/nonexistent/layout.svg", "No such file"]);
}

#[test]
fn positions_that_are_not_there() {
    for (args, says) in [
        (&["--row", "64", "--k", "0"][..], "'--row <R>': expected a whole number from 0 to 63"),
        (&["--row", "0", "--k", "64"], "'--k <K>': expected a whole number from 0 to 63"),
        (&["--warp", "4", "--lane", "0"], "'--warp <W>': expected a whole number from 0 to 3"),
        (&["--warp", "0", "--lane", "32"], "'--lane <L>': expected a whole number from 0 to 31"),
        (&["--row", "1"], "--k <K>"),
        (&["--lane", "1"], "--warp <W>"),
        (&["--row", "1", "--k", "1", "--warp", "1", "--lane", "1"], "cannot be used with"),
    ] {
        let output = run(&[&["layout"], args].concat());
        assert_eq!((output.code, output.stdout.as_str()), (Some(2), ""), "{args:?}");
        has(&output.stderr, &[says]);
    }
}
