//! The source tree as files and the arrows between them: which file names something of which other one, by a
//! `use` or by a path in its code.
//!
//! An arrow leads to the file that defines what is named: re-exports are seen through, and so is a module that is
//! only passed on the way. Test modules are left out. Not a compiler: a name that is made by a macro is not seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A file's module path, as in `conntracer::kernel::btf`; of a crate's root its name.
pub(crate) type Module = String;

/// Where one file names another: the line, and the path as it is written.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) line: usize,
    pub(crate) path: String,
}

/// Every arrow between two files, with the first place of each.
pub(crate) type Arrows = BTreeMap<Module, BTreeMap<Module, Place>>;

#[derive(Debug, Default)]
pub(crate) struct Tree {
    pub(crate) files: BTreeMap<Module, PathBuf>,
    scopes: BTreeMap<Module, Scope>,
}

/// What one module declares and names; an inline module is one of its own, in its parent's file.
#[derive(Debug, Default)]
struct Scope {
    file: Module,
    /// Functions, types, constants and the like.
    items: BTreeSet<String>,
    /// What `use` brings in, by the name it has here.
    names: BTreeMap<String, Vec<String>>,
    globs: Vec<Vec<String>>,
    paths: Vec<(usize, Vec<String>)>,
}

impl Tree {
    /// Takes in a crate by its root file.
    pub(crate) fn add(&mut self, name: &str, root: &Path) {
        let directory = root.parent().expect("a file lies in a directory");
        self.file(name, root, directory);
    }

    fn file(&mut self, module: &str, path: &Path, children: &Path) {
        let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let tokens = TokenStream::from_str(&text)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        self.files.insert(module.to_owned(), path.to_owned());
        self.module(module, module, tokens, children);
    }

    /// Walks one module of a file, whose own modules lie in `children`.
    fn module(&mut self, module: &str, file: &str, tokens: TokenStream, children: &Path) {
        let scope = Scope {
            file: file.to_owned(),
            ..Scope::default()
        };
        self.scopes.insert(module.to_owned(), scope);
        self.tokens(module, file, tokens, children, true);
    }

    fn tokens(
        &mut self,
        module: &str,
        file: &str,
        tokens: TokenStream,
        children: &Path,
        is_top: bool,
    ) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            let rest = &tokens[at..];
            if let Some(item) = tested(rest) {
                at += item;
                continue;
            }
            let word = word(&rest[0]);
            let name = rest.get(1).and_then(self::word);
            at += 1;
            match (word.as_deref(), name, rest.get(2)) {
                // Not what a type captures.
                (Some("use"), _, _) if !rest.get(1).is_some_and(|next| is(next, '<')) => {
                    let end = rest.iter().position(|token| is(token, ';'));
                    let end = end.expect("a use ends");
                    let line = rest[0].span().start().line;
                    self.imports(module, line, &mut Vec::new(), &rest[1..end]);
                    at += end;
                }
                (Some("mod"), Some(name), Some(TokenTree::Group(body))) => {
                    let inner = format!("{module}::{name}");
                    self.module(&inner, file, body.stream(), &children.join(&name));
                    at += 2;
                }
                (Some("mod"), Some(name), Some(_)) => {
                    let folder = children.join(&name);
                    let alone = children.join(format!("{name}.rs"));
                    let path = if alone.exists() {
                        alone
                    } else {
                        folder.join("mod.rs")
                    };
                    self.file(&format!("{module}::{name}"), &path, &folder);
                    at += 2;
                }
                (Some("macro_rules"), None, Some(TokenTree::Ident(name))) => {
                    self.scope(module).items.insert(name.to_string());
                }
                (Some(keyword), Some(name), _) if is_top && defines(keyword) => {
                    self.scope(module).items.insert(name);
                }
                (Some(first), _, _) => {
                    let mut path = vec![first.to_owned()];
                    let line = rest[0].span().start().line;
                    let mut end = 1;
                    while let Some(next) = follows(&rest[end..]) {
                        path.push(next);
                        end += 3;
                    }
                    // A field or a method is no path.
                    let is_path = at < 2 || !is(&tokens[at - 2], '.');
                    if path.len() > 1 && is_path {
                        self.scope(module).paths.push((line, path));
                    }
                    at += end - 1;
                }
                (None, _, _) => {
                    if let TokenTree::Group(group) = &rest[0] {
                        self.tokens(module, file, group.stream(), children, false);
                    }
                }
            }
        }
    }

    fn scope(&mut self, module: &str) -> &mut Scope {
        self.scopes.get_mut(module).expect("it was begun")
    }

    /// One tree of a `use`.
    fn imports(&mut self, module: &str, line: usize, prefix: &mut Vec<String>, tree: &[TokenTree]) {
        let before = prefix.len();
        let mut at = 0;
        while let Some(token) = tree.get(at) {
            at += 1;
            match token {
                TokenTree::Group(group) => {
                    let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                    for branch in inner.split(|token| is(token, ',')) {
                        self.imports(module, line, prefix, branch);
                    }
                    prefix.truncate(before);
                    return;
                }
                TokenTree::Punct(point) if point.as_char() == '*' => {
                    let path = prefix.clone();
                    self.scope(module).globs.push(path);
                }
                TokenTree::Ident(name) if name == "as" => break,
                TokenTree::Ident(name) => prefix.push(name.to_string()),
                _ => {}
            }
        }
        if prefix.last().is_some_and(|last| last == "self") && prefix.len() > 1 {
            prefix.pop();
        }
        let alias = tree
            .get(at)
            .and_then(word)
            .or_else(|| prefix.last().cloned());
        if let Some(alias) = alias.filter(|_| !tree.last().is_some_and(|last| is(last, '*'))) {
            let path = prefix.clone();
            let line = tree.first().map_or(line, |token| token.span().start().line);
            let scope = self.scope(module);
            scope.paths.push((line, path.clone()));
            scope.names.insert(alias, path);
        }
        prefix.truncate(before);
    }

    /// Where a path leads: the module, and whether to something in it.
    fn resolve(
        &self,
        from: &str,
        path: &[String],
        seen: &mut BTreeSet<Module>,
    ) -> Option<(Module, bool)> {
        let (first, rest) = path.split_first()?;
        let start = match first.as_str() {
            "crate" => from.split("::").next()?.to_owned(),
            "self" => from.to_owned(),
            "super" => from.rsplit_once("::")?.0.to_owned(),
            name if self.scopes.contains_key(name) && !rest.is_empty() => name.to_owned(),
            _ => return self.look_up(from, path, seen),
        };
        self.look_up(&start, rest, seen)
    }

    /// Looks a path up that begins in a module.
    fn look_up(
        &self,
        module: &str,
        path: &[String],
        seen: &mut BTreeSet<Module>,
    ) -> Option<(Module, bool)> {
        let scope = self.scopes.get(module)?;
        let Some((first, rest)) = path.split_first() else {
            return Some((module.to_owned(), false));
        };
        if first == "super" {
            return self.look_up(module.rsplit_once("::")?.0, rest, seen);
        }
        let child = format!("{module}::{first}");
        // A function may have a module's name.
        let is_module = self.scopes.contains_key(&child);
        if (rest.is_empty() || !is_module) && scope.items.contains(first) {
            return Some((module.to_owned(), true));
        }
        if is_module {
            return self.look_up(&child, rest, seen);
        }
        if !seen.insert(child) {
            return None;
        }
        if let Some(target) = scope.names.get(first) {
            let whole = [target.as_slice(), rest].concat();
            return self.resolve(module, &whole, seen);
        }
        scope.globs.iter().find_map(|glob| {
            let (target, _) = self.resolve(module, glob, seen)?;
            self.look_up(&target, path, seen)
        })
    }

    /// Who names whom.
    pub(crate) fn arrows(&self) -> Arrows {
        let mut arrows = Arrows::new();
        for (module, scope) in &self.scopes {
            for (line, path) in &scope.paths {
                let found = self.resolve(module, path, &mut BTreeSet::new());
                let Some((target, true)) = found else {
                    continue;
                };
                let file = &self.scopes[&target].file;
                if *file != scope.file {
                    let place = Place {
                        line: *line,
                        path: path.join("::"),
                    };
                    let of_file = arrows.entry(scope.file.clone()).or_default();
                    let first = of_file.entry(file.clone()).or_insert_with(|| place.clone());
                    if place.line < first.line {
                        *first = place;
                    }
                }
            }
        }
        arrows
    }
}

fn word(token: &TokenTree) -> Option<String> {
    match token {
        TokenTree::Ident(name) => Some(name.to_string()),
        _ => None,
    }
}

fn is(token: &TokenTree, wanted: char) -> bool {
    matches!(token, TokenTree::Punct(point) if point.as_char() == wanted)
}

/// The next name of a path.
fn follows(tokens: &[TokenTree]) -> Option<String> {
    match tokens {
        [first, second, name, ..] if is(first, ':') && is(second, ':') => word(name),
        _ => None,
    }
}

/// Whether a word makes the next one a name of its module.
fn defines(keyword: &str) -> bool {
    [
        "fn", "struct", "enum", "union", "trait", "type", "const", "static",
    ]
    .contains(&keyword)
}

/// How many tokens an item has that is there in tests only, with its attribute.
fn tested(tokens: &[TokenTree]) -> Option<usize> {
    let [first, TokenTree::Group(attribute), rest @ ..] = tokens else {
        return None;
    };
    if !is(first, '#') || attribute.stream().to_string().replace(' ', "") != "cfg(test)" {
        return None;
    }
    let end = rest.iter().position(|token| {
        is(token, ';')
            || matches!(token, TokenTree::Group(body) if body.delimiter() == Delimiter::Brace)
    })?;
    // A `use` of several has braces and a semicolon.
    let semicolon = rest.get(end + 1).is_some_and(|token| is(token, ';'));
    Some(2 + end + 1 + usize::from(semicolon))
}
