//! One Rust file, parsed: its tokens with places, its functions, and which lines are test code.
//!
//! Checks work on tokens and not on text, so that a banned call in a comment or a string is no
//! finding and one that is spread over two lines is. Doc comments are attributes to the compiler;
//! they are left out of the tokens here.
//!
//! The tricky part is what counts as test code: items under `#[cfg(test)]` or `#[test]`, files in
//! a `tests` or `benches` folder or called `tests.rs`, and files that another file declares with
//! `#[cfg(test)] mod name;`. The last kind is found by `test_modules` and resolved by the caller,
//! since it needs the other files.

use proc_macro2::{Delimiter, Span, TokenStream, TokenTree};
use std::ops::RangeInclusive;
use syn::visit::{self, Visit};

/// A token, flattened: brackets are tokens of their own.
#[derive(Debug, Clone)]
pub(crate) struct Token {
    /// As written; string literals with their quotes.
    pub(crate) text: String,
    /// First line, from 1.
    pub(crate) line: usize,
    /// Last line: differs for literals of several lines.
    pub(crate) line_end: usize,
    /// First column, from 0.
    pub(crate) column: usize,
    /// Column behind the last character.
    pub(crate) column_end: usize,
    /// A string, character or number.
    pub(crate) is_literal: bool,
}

/// A function with a body.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) line: usize,
    pub(crate) len_lines: usize,
}

/// A parsed file.
#[derive(Debug)]
pub(crate) struct RustFile {
    pub(crate) tokens: Vec<Token>,
    pub(crate) functions: Vec<Function>,
    /// Modules declared as `#[cfg(test)] mod name;`.
    pub(crate) test_modules: Vec<String>,
    /// `#![...]` of the file, spaces removed.
    pub(crate) inner_attributes: Vec<String>,
    test_lines: Vec<RangeInclusive<usize>>,
}

impl RustFile {
    /// Parses the text; the error is a sentence with the line in front.
    pub(crate) fn parse(text: &str) -> Result<RustFile, (usize, String)> {
        let stream: TokenStream = text
            .parse()
            .map_err(|error: proc_macro2::LexError| (line_of(error.span()), error.to_string()))?;
        let mut tokens = Vec::new();
        flatten(stream.clone(), &mut tokens);
        let file: syn::File = syn::parse2(stream)
            .map_err(|error| (line_of(error.span()), format!("does not parse: {error}")))?;
        let mut seen = Seen::default();
        seen.visit_file(&file);
        let inner_attributes = file.attrs.iter().filter_map(inner_attribute).collect();
        Ok(RustFile {
            tokens,
            functions: seen.functions,
            test_modules: seen.test_modules,
            inner_attributes,
            test_lines: seen.test_lines,
        })
    }

    /// Whether this line belongs to a test.
    pub(crate) fn is_test_line(&self, line: usize) -> bool {
        self.test_lines.iter().any(|lines| lines.contains(&line))
    }

    /// Lines on which this sequence of tokens begins.
    pub(crate) fn find(&self, wanted: &[&str]) -> Vec<usize> {
        self.tokens
            .windows(wanted.len())
            .filter(|tokens| tokens.iter().zip(wanted).all(|(have, want)| have.text == *want))
            .map(|tokens| tokens[0].line)
            .collect()
    }
}

/// Whether a path alone says that a file holds tests.
pub(crate) fn is_test_path(path: &str) -> bool {
    path.split('/').any(|part| matches!(part, "tests" | "benches" | "tests.rs"))
}

fn line_of(span: Span) -> usize {
    span.start().line
}

fn flatten(stream: TokenStream, out: &mut Vec<Token>) {
    let trees: Vec<TokenTree> = stream.into_iter().collect();
    let mut at = 0;
    while at < trees.len() {
        if let Some(len) = doc_comment_len(&trees[at..]) {
            at += len;
            continue;
        }
        match &trees[at] {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                out.push(token(open.to_owned(), group.span_open(), false));
                flatten(group.stream(), out);
                out.push(token(close.to_owned(), group.span_close(), false));
            }
            TokenTree::Literal(literal) => {
                out.push(token(literal.to_string(), literal.span(), true));
            }
            TokenTree::Ident(ident) => out.push(token(ident.to_string(), ident.span(), false)),
            TokenTree::Punct(punct) => {
                out.push(token(punct.as_char().to_string(), punct.span(), false));
            }
        }
        at += 1;
    }
}

/// If a doc comment (`#[doc = "..."]` to the compiler) starts here, its length in trees.
fn doc_comment_len(trees: &[TokenTree]) -> Option<usize> {
    let is_punct =
        |tree: Option<&TokenTree>, c| matches!(tree, Some(TokenTree::Punct(p)) if p.as_char() == c);
    if !is_punct(trees.first(), '#') {
        return None;
    }
    let at = if is_punct(trees.get(1), '!') { 2 } else { 1 };
    let Some(TokenTree::Group(group)) = trees.get(at) else { return None };
    let mut inside = group.stream().into_iter();
    let is_doc = matches!(inside.next(), Some(TokenTree::Ident(ident)) if ident == "doc");
    (is_doc && is_punct(inside.next().as_ref(), '=')).then_some(at + 1)
}

fn token(text: String, span: Span, is_literal: bool) -> Token {
    let (start, end) = (span.start(), span.end());
    Token {
        text,
        line: start.line,
        line_end: end.line,
        column: start.column,
        column_end: end.column,
        is_literal,
    }
}

fn inner_attribute(attribute: &syn::Attribute) -> Option<String> {
    match &attribute.meta {
        syn::Meta::Path(path) => Some(path.get_ident()?.to_string()),
        syn::Meta::List(list) => {
            let name = list.path.get_ident()?;
            let inside: String =
                list.tokens.to_string().chars().filter(|c| !c.is_whitespace()).collect();
            Some(format!("{name}({inside})"))
        }
        syn::Meta::NameValue(_) => None,
    }
}

#[derive(Default)]
struct Seen {
    functions: Vec<Function>,
    test_modules: Vec<String>,
    test_lines: Vec<RangeInclusive<usize>>,
}

impl Seen {
    fn function(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let line = line_of(signature.fn_token.span);
        let last = block.brace_token.span.close().end().line;
        let name = signature.ident.to_string();
        self.functions.push(Function { name, line, len_lines: last + 1 - line });
    }

    fn test_item(&mut self, attributes: &[syn::Attribute], item: &dyn syn::spanned::Spanned) {
        if attributes.iter().any(is_test_attribute) {
            let span = item.span();
            self.test_lines.push(span.start().line..=span.end().line);
        }
    }
}

fn is_test_attribute(attribute: &syn::Attribute) -> bool {
    if attribute.path().segments.last().is_some_and(|last| last.ident == "test") {
        return true;
    }
    let syn::Meta::List(list) = &attribute.meta else { return false };
    let inside: String = list.tokens.to_string().chars().filter(|c| !c.is_whitespace()).collect();
    list.path.is_ident("cfg") && (inside == "test" || inside.starts_with("all(test,"))
}

impl<'ast> Visit<'ast> for Seen {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.function(&item.sig, &item.block);
        self.test_item(&item.attrs, item);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.function(&item.sig, &item.block);
        self.test_item(&item.attrs, item);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.function(&item.sig, block);
        }
        visit::visit_trait_item_fn(self, item);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let is_test = item.attrs.iter().any(is_test_attribute);
        if is_test && item.content.is_none() {
            self.test_modules.push(item.ident.to_string());
        }
        self.test_item(&item.attrs, item);
        visit::visit_item_mod(self, item);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        self.test_item(&item.attrs, item);
        visit::visit_item_impl(self, item);
    }
}
