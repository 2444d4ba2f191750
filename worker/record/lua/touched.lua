-- Finds, among the open tasks that were written since some time, those with something left to do:
-- waiting tasks with a deadline, and tasks that ended while they waited and whose pushes are not
-- queued. Shrinks the events of new tasks: Redis allocates 4 KiB for the first entry of a stream,
-- and for a copy of it only what it takes.
--
-- open     ns:open     sorted set  read, as are the records of its members
-- scratch  ns:scratch  stream      overwritten
-- since    score of the first member to read
-- count    most members to read
-- before   what is before and behind the id in a record's key
-- behind
-- stream   what is behind the id in the key of its events
-- Returns {number of members read, first score, last score but at most the present time, the
-- present time, id, deadline or '', ...}. A member whose record can't be read is left out.
local open, scratch = unpack(KEYS)
local since, count, before, behind, stream = unpack(ARGV)
local now = stamp(now_s())
local members = redis.call('ZRANGE', open, since, '+inf', 'BYSCORE', 'LIMIT', 0, count,
  'WITHSCORES')
if #members == 0 then return {0, since, since, now} end
-- A producer may write any score: one in the future must not hide the tasks written until then.
local last = members[#members]
if tonumber(last) > tonumber(now) then last = now end
local found = {#members / 2, members[2], last, now}
local function shrink(events)
  if redis.pcall('COPY', events, scratch, 'REPLACE') == 1 then
    redis.pcall('COPY', scratch, events, 'REPLACE')
  end
end
for each = 1, #members, 2 do
  local id = members[each]
  local record = redis.pcall('HMGET', before .. id .. behind,
    'status', 'deadline_at', 'owner', 'told', 'seq')
  local status, deadline_at, owner, told, seq = unpack(record)
  if status == 'queued' then
    if seq == '1' then shrink(before .. id .. stream) end
    local deadline = tonumber(deadline_at or '')
    if deadline and deadline == deadline then
      found[#found + 1] = id
      found[#found + 1] = stamp(deadline)
    end
  elseif status and not owner and not told then
    found[#found + 1] = id
    found[#found + 1] = ''
  end
end
return found
